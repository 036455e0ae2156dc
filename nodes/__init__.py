"""What the user sees: one file a stage of the method. Imported by the host only."""

from comfy_api.latest import ComfyExtension, io

from . import (
    attention,
    controllers,
    demo,
    directions,
    edit,
    guidance,
    invert,
    invert_dpm,
    invert_exact,
    ledits,
    merging,
    metrics,
    paste_back,
    prompts,
    refine,
    structure,
    style,
    trajectories,
    transformers,
    types,
    unified,
)


class RetraceExtension(ComfyExtension):
    """The list of nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes = [
            demo.DemoModel,
            demo.DemoScene,
            prompts.PromptPair,
            invert.InvertDDIM,
            invert.InvertDirectInversion,
            refine.InvertNullText,
            refine.InvertNegativePrompt,
            controllers.P2PController,
            guidance.ProximalGuidance,
            guidance.XAttnGuidance,
            directions.SentenceTemplates,
            directions.EditDirectionNode,
            directions.ApplyDirection,
            directions.SaveDirection,
            directions.LoadDirection,
            directions.LoadSentences,
            ledits.SparseGuidanceNode,
            structure.MasaCtrlController,
            structure.PnPController,
            edit.EditSampler,
            invert_dpm.InvertDPMSolver,
            invert_exact.InvertEDICT,
            invert_exact.InvertEditFriendly,
            invert_exact.VirtualInversion,
            trajectories.SaveTrajectory,
            trajectories.LoadTrajectory,
            trajectories.TrajectoryViewer,
            attention.AttentionCapture,
            attention.AttentionViewer,
            paste_back.PasteBack,
            metrics.EditMetrics,
            style.InvertStyleDiffusion,
            style.StyleDiffusionWindow,
            demo.DemoVision,
            unified.UACController,
            transformers.DiT4EditController,
            merging.PatchMerge,
        ]
        return [types.checked(node) for node in nodes]

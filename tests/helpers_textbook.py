"""The papers' attention edits on materialised maps, and single network calls to compare with."""

import torch

STEPS = 10
TU, SU, SC, TC = range(4)  # order of roles in the batch: target/source x uncond/cond


def softmax_maps(q, k, heads):
    """Return attention maps "rows heads queries keys"."""
    q, k = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)


def times_values(maps, v):
    """Return maps times values, "rows queries channels"."""
    v = v.unflatten(2, (maps.shape[1], -1)).transpose(1, 2)
    return (maps @ v).transpose(1, 2).flatten(2)


class Textbook:
    """The papers' algorithms on materialised maps, through the host's replacement slots."""

    def __init__(self, cases, facts, step, added=None):
        self.cases, self.facts, self.step, self.added = cases, facts, step, added
        self.seen = []  # maps for automatic masks, of the layers that have run

    def images(self, x):
        return x.unflatten(0, (4, self.facts.images))

    def options(self):
        slots = {"attn1": {}, "attn2": {}}
        for site in self.facts.sites:
            kind = "attn1" if site.kind == "self" else "attn2"
            method = self.self_attention if site.kind == "self" else self.cross_attention
            slots[kind][site.address] = self.bound(method, site)
        return {"patches_replace": slots}

    @staticmethod
    def bound(method, site):
        return lambda q, k, v, extra: method(site, q, k, v, extra["n_heads"])

    def cross_attention(self, site, q, k, v, heads):
        """Prompt-to-Prompt: edit the map of the target's cond rows, then multiply."""
        maps = self.images(softmax_maps(q, k, heads)).clone()
        if site.downsample == 2 and site.stage != "middle":  # the grid nearest to a quarter
            self.seen.append(maps[[SC, TC]].mean(2))
        for case in self.cases:
            if type(case).__name__ == "PromptToPrompt":
                maps[TC] = self.edited_map(case, maps[SC], maps[TC])
        out = times_values(maps.flatten(0, 1), v)
        return out if self.added is None else out + self.added(q, heads)

    def edited_map(self, case, source, target):
        """M' = alpha eq M_hat + (1 - alpha) M_t, token by token."""
        from retrace.attention.alignment import make_token_map

        pair = case.prompts
        token_map = make_token_map(pair.source, pair.target, case.mode)
        # a context that was padded by repetition is the prompt's: its columns add up
        source = source.unflatten(-1, (-1, len(pair.source.tokens))).sum(-2)
        edited, tokens = target.clone(), target.shape[-1]
        windows = dict.fromkeys(range(tokens), case.cross_replace)
        for word, window in case.word_windows:
            windows |= dict.fromkeys(pair.target.span(word), window)
        factors = dict.fromkeys(range(tokens), 1.0)
        for word, factor in case.reweight:
            factors |= dict.fromkeys(pair.target.span(word), factor)
        for n in range(tokens):
            start, end = (int(f * (STEPS + 1)) for f in windows[n])
            if not start <= self.step < end:
                continue
            if token_map.mapped[n]:
                mixed = sum(
                    float(token_map.weights[w, n]) * source[..., w]
                    for w in token_map.weights[:, n].nonzero()[:, 0].tolist()
                )
            else:
                mixed = target[..., n]
            edited[..., n] = factors[n] * mixed
        return edited

    def self_attention(self, site, q, k, v, heads):
        for case in self.cases:
            kind = type(case).__name__
            if kind == "MasaCtrl" and self.step >= 0.2 * STEPS and site.order >= 2:
                return self.mutual(case, site, q, k, v, heads)
        maps = self.images(softmax_maps(q, k, heads)).clone()
        for case in self.cases:
            kind = type(case).__name__
            if kind == "PromptToPrompt" and self.step < int(case.self_replace[1] * STEPS):
                if self.facts.tokens(site) <= self.facts.latent_tokens // 4:
                    maps[TC] = maps[SC]
            if kind == "PlugAndPlay" and self.step < int(case.attention_fraction * STEPS):
                decoder = [s.index for s in self.facts.sites if s.stage == "output"]
                if site.stage == "output" and site.index > min(decoder):
                    maps[TC] = maps[SC]
                    maps[TU] = maps[SC]
        return times_values(maps.flatten(0, 1), v)

    def mutual(self, case, site, q, k, v, heads):
        """MasaCtrl: logits of target queries and source keys; masked ones are minus infinity."""
        out = self.images(times_values(softmax_maps(q, k, heads), v)).clone()
        q, k, v = self.images(q), self.images(k), self.images(v)
        for target, source in ((TU, SU), (TC, SC)):
            for image in range(self.facts.images):
                qt, ks, vs = q[target][image], k[source][image], v[source][image]
                if case.mask_source is None and case.auto is None:
                    one = times_values(softmax_maps(qt[None], ks[None], heads), vs[None])[0]
                else:
                    one = self.masked(case, site, image, qt, ks, vs, heads)
                out[target][image] = one
        return out.flatten(0, 1)

    def masked(self, case, site, image, q, k, v, heads):
        grid, parts = self.facts.grid(site), []
        masks = (case.mask_source, case.mask_target) if case.auto is None else self.read(case.auto)
        masks = [
            torch.nn.functional.interpolate(m[None, image % len(m)][None], size=grid).flatten()
            for m in masks
        ]
        for allowed in (masks[0] == 1, masks[0] == 0):
            qh, kh = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (q, k))
            logits = qh @ kh.transpose(1, 2) * qh.shape[-1] ** -0.5
            logits = logits.masked_fill(~allowed, -torch.inf)
            parts.append(times_values(logits.softmax(-1)[None], v[None])[0])
        return parts[0] * masks[1][:, None] + parts[1] * (1 - masks[1][:, None])

    def read(self, auto):
        """Automatic masks: the words' maps averaged over layers, scaled to [0, 1], thresholded."""
        grid = tuple(-(-side // 2) for side in (self.facts.height, self.facts.width))
        masks = []
        for branch, prompt, words in (
            (0, auto.source_prompt, auto.source), (1, auto.target_prompt, auto.target)
        ):
            tokens = [position for word in words for position in prompt.span(word)]
            mean = torch.stack([maps[branch][..., tokens].sum(-1) for maps in self.seen]).mean(0)
            low, high = mean.amin(1, keepdim=True), mean.amax(1, keepdim=True)
            scaled = (mean - low) / (high - low)
            masks.append((scaled >= auto.threshold).float().unflatten(1, grid))
        return masks

    def inject_features(self, network):
        """Plug-and-Play: out = skip(x) + h with the source's h, on the published block."""
        handles = []
        for case in self.cases:
            if type(case).__name__ == "PlugAndPlay" and self.step < case.feature_fraction * STEPS:
                decoder = sorted({s.index for s in self.facts.sites if s.stage == "output"})
                block = network.output_blocks[decoder[1]][0]
                handles.append(block.register_forward_hook(self.features))
        return handles

    def features(self, block, inputs, out):
        skip = block.skip_connection(inputs[0])
        h = self.images(out - skip).clone()
        h[TU] = h[SC]
        h[TC] = h[SC]
        return skip + h.flatten(0, 1)


def make_inputs(model, images, size=(16, 16)):
    """Return rows of latents, contexts and the pooled vector; source and target differ."""
    generator = torch.Generator().manual_seed(5)
    width = model.model.diffusion_model.middle_block[1].transformer_blocks[0].attn2.to_k
    x = torch.randn(4, images, 4, *size, generator=generator)
    x[SU], x[TU] = x[SC], x[TC]
    context = torch.randn(3, 1, 77, width.in_features, generator=generator)
    context = context[[0, 0, 1, 2]].expand(-1, images, -1, -1)
    extra = {}
    if model.model.diffusion_model.num_classes is not None:
        extra["y"] = torch.randn(1, 2816, generator=generator).expand(4 * images, -1)
    return x.flatten(0, 1) * 3, context.flatten(0, 1), extra


def prepare(model, cases, images, size=(16, 16)):
    from retrace.attention.plan import EditPlan, RunFacts
    from retrace.attention.run import EditRun
    from retrace.host.model import attention_sites

    facts = RunFacts(STEPS, 0, *size, images, attention_sites(model))
    return facts, EditRun(facts, EditPlan(tuple(cases)).prepare(facts))


def ours(model, run, step, x, context, extra, override=None, others=None):
    """Return the network's output with the run's hooks, in one call of all rows.

    override: an attention function; others: transformer options that other packs have set.
    """
    from retrace.attention.rows import (
        SOURCE_COND,
        SOURCE_UNCOND,
        TARGET_COND,
        TARGET_UNCOND,
        RowLayout,
    )
    from retrace.host.attach import attach_unet, residual_hooks
    from retrace.host.guider import ACTIVE

    roles = (TARGET_UNCOND, SOURCE_UNCOND, SOURCE_COND, TARGET_COND)
    layout = RowLayout(roles, len(x) // 4)
    given = {**(others or {}), ACTIVE: layout}
    options = attach_unet({"transformer_options": given}, run)["transformer_options"]
    if override is not None:
        options["optimized_attention_override"] = override
    run.begin(step, layout)
    with torch.no_grad(), residual_hooks(model.model.diffusion_model, run):
        out = model.model.apply_model(
            x, torch.full((len(x),), 4.0), c_crossattn=context, transformer_options=options, **extra
        )
    run.end()
    return out


def textbook(model, cases, facts, step, x, context, extra, others=None, added=None):
    """Return the network's output with every map materialised and edited.

    others: transformer options that other packs have set, without replacements. added: what an
    additive replacement of cross-attention adds to its output, (q, heads) -> tensor.
    """
    book = Textbook(cases, facts, step, added)
    handles = book.inject_features(model.model.diffusion_model)
    try:
        with torch.no_grad():
            return model.model.apply_model(
                x, torch.full((len(x),), 4.0), c_crossattn=context,
                transformer_options={**(others or {}), **book.options()}, **extra
            )
    finally:
        for handle in handles:
            handle.remove()


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())

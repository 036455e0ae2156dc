"""Sizes of the demo model's networks: what training and loading must agree on."""

KINDS = ("unet", "dit")
"""The demo's denoisers: SD1.5's UNet class and PixArt's transformer."""

UNET = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "num_heads": -1,
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "context_dim": 128,
    "legacy": False,
}

TRANSFORMER = {
    "patch_size": 8,
    "in_channels": 4,
    "hidden_size": 192,
    "depth": 8,
    "num_heads": 6,
    "caption_channels": 128,
    "model_max_length": 32,
    "class_dropout_prob": 0.0,
    "pred_sigma": False,
    "micro_condition": False,
}
"""PixArt's; a patch of 8 of what is enlarged four times is one of 2 (see transformer.py)."""

TEXT = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 32,
    "eos_token_id": 49407,
}
VOCABULARY = 49408  # CLIP's; only the rows in use are stored
END_TOKEN = 49407

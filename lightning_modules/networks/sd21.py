"""Stable Diffusion 2.1 steered by a ControlNet, as DoSSR trains it, from classes of diffusers and transformers."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_modules.hub import DOWNLOAD, HubWeights, frozen, missing_files, place_of
from lightning_modules.weights import located

BFLOAT16 = 1e-2  # relative difference of weights that were stored in bfloat16


class ControlledUNet(HubWeights, nn.Module):
    """A frozen Stable Diffusion UNet, steered by a trainable copy of its encoder (ControlNet, arXiv:2302.05543).

    The copy sees the degraded image's latent beside the state, on 4 further channels. The weights of these start at
    zero, as do the convolutions between the copy and the UNet, so training starts from Stable Diffusion itself.
    (DoSSR's script for initial weights leaves the copy random; we follow its ancestor DiffBIR, arXiv:2308.15070.)

    The prompt is fixed. Its embedding is computed once, and the text encoder is not kept.

    A checkpoint of this module holds the ControlNet and a signature of the UNet that it was trained for.

    Args:
        weights: Hub id of a Stable Diffusion 2.1-base, or a folder with its `unet`, `text_encoder` and `tokenizer`.
        prompt: Shown when sampling. Training, and classifier-free guidance's null condition, use the empty prompt.
        gradient_checkpointing: Save memory in training by computing activations a second time.

    Attributes:
        stride: Height and width of a state must be multiples of it.
        conditioning: The label is the index of the step.
        middle_attention: Path of the innermost self-attention, which self-attention guidance reads.

    Raises:
        FileNotFoundError: the weights are missing and cannot be downloaded.
        ValueError: they are partial, or of another architecture.
    """

    stride = 8
    global_statistics = True  # of its GroupNorms, and its attention
    conditioning = "index"
    subfolder = "unet"
    middle_attention = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"
    text: Tensor
    empty_text: Tensor
    signature: Tensor

    def __init__(
        self,
        weights: str,
        prompt: str = "clean, high-resolution, 8k",
        gradient_checkpointing: bool = True,
    ) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel  # takes seconds to import

        weights = self.weights = located(weights) if place_of(weights) != "nowhere" else weights
        self.unet = frozen(UNet2DConditionModel, weights, subfolder="unet")
        self.controlnet = controlnet_for(self.unet)

        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.controlnet.enable_gradient_checkpointing()

        text, empty_text = embed([prompt, ""], weights).chunk(2)
        if text.shape[-1] != self.unet.config.cross_attention_dim:
            raise ValueError(
                f"{weights}: the text encoder writes {text.shape[-1]} channels, but the UNet reads "
                f"{self.unet.config.cross_attention_dim}: they belong to different models"
            )

        self.register_buffer("text", text, persistent=False)
        self.register_buffer("empty_text", empty_text, persistent=False)
        self.register_buffer("signature", signature(self.unet))
        self.register_load_state_dict_pre_hook(check_signature)  # type: ignore[no-untyped-call]

    @classmethod
    def absent(cls, weights: str, subfolder: str) -> str:
        """See `HubWeights.absent`."""
        from diffusers import UNet2DConditionModel

        return missing_files(UNet2DConditionModel, f"{weights}/{subfolder}")

    def train(self, mode: bool = True) -> "ControlledUNet":
        """Sets the mode of the ControlNet; the UNet stays in evaluation mode."""
        super().train(mode)
        self.unet.eval()
        return self

    def forward(self, x: Tensor, label: Tensor, *, hint: Tensor, text: Tensor) -> Tensor:
        """The predicted noise.

        Args:
            x: `[B,4,h,w]`.
            label: Index of the step, `[B]`, 0 to 999.
            hint: Latent of the degraded image, `[B,4,h,w]`.
            text: Embedding of the prompt, `[B,tokens,D]`.

        Returns:
            `[B,4,h,w]`.
        """
        down, middle = self.controlnet(x, label, text, hint, return_dict=False)
        return cast(
            Tensor,
            self.unet(
                x,
                label,
                text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0],
        )


def controlnet_for(unet: Any) -> Any:
    """A trainable `ControlNetModel` that starts as the encoder of `unet` and reads a latent as its hint.

    The published input convolution reads 8 channels, the state's and the hint's. Here it is the sum of two convolutions
    of 4, which is the same, because convolutions are linear.
    """
    from diffusers import ControlNetModel

    controlnet = ControlNetModel.from_unet(unet)
    channels = unet.config.block_out_channels[0]
    hint = nn.Conv2d(unet.config.in_channels, channels, 3, padding=1, bias=False, device=unet.device)
    nn.init.zeros_(hint.weight)

    controlnet.controlnet_cond_embedding = hint
    return controlnet.requires_grad_(True)


def text_encoder(weights: str) -> Any:
    """The frozen `CLIPTextModel` in `weights`."""
    from transformers import CLIPTextModel

    return frozen(CLIPTextModel, weights, subfolder="text_encoder")


def embed(prompts: list[str], weights: str) -> Tensor:
    """Embeddings of prompts by the text encoder in `weights`, `[prompts,tokens,D]` float32.

    Raises:
        FileNotFoundError: encoder or tokenizer are missing and cannot be downloaded.
        ValueError: encoder and tokenizer do not fit each other.
    """
    from transformers import CLIPTokenizer

    encoder = text_encoder(weights)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(weights, subfolder="tokenizer")
    except (OSError, TypeError) as error:
        raise FileNotFoundError(
            f"weights: {weights}/tokenizer: expected vocab.json, merges.txt and tokenizer_config.json. {DOWNLOAD}"
        ) from error

    if len(tokenizer) != encoder.config.vocab_size:
        raise ValueError(
            f"{weights}/tokenizer: knows {len(tokenizer)} tokens, but the text encoder beside it "
            f"{encoder.config.vocab_size}: expected vocab.json and merges.txt of the same model"
        )

    length = encoder.config.max_position_embeddings
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return cast(Tensor, encoder(tokens.input_ids).last_hidden_state)


def signature(unet: nn.Module) -> Tensor:
    """One number from each of the UNet's parameters, by which a ControlNet recognises the UNet it was trained for."""
    return torch.stack([parameter.detach().flatten()[0] for parameter in unet.parameters()])


def check_signature(module: nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Compares the signature in `state` with the module's own; called by `load_state_dict` before it loads.

    Raises:
        ValueError: the ControlNet in `state` was trained for another UNet.
    """
    stored, own = state.get(f"{prefix}signature"), cast(Tensor, module.signature)
    if stored is None or stored.shape != own.shape:
        return  # load_state_dict reports both

    if not torch.allclose(stored.to(own), own, rtol=BFLOAT16, atol=1e-5):
        raise ValueError(
            "this ControlNet was trained for another base: the weights of the Stable Diffusion UNet differ; give the "
            "base that it was trained for as the network's `weights`"
        )

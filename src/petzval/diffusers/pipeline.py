"""The pipeline: `petzval.Pipeline`'s work in the form that diffusers' users know.

The same mathematics, and with the same noise the same picture. What differs is who holds the loop:
here the scheduler is diffusers' own and can be exchanged, and a callback may change what is between
two steps.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.utils.import_utils import is_accelerate_available
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from petzval.conditioning.template import DEFAULT_DATE
from petzval.conditioning.tokenizer import DEFAULT_MAX_TOKENS, PromptTokenizer
from petzval.config import to_mapping
from petzval.diffusers.adapters import LoraMethods
from petzval.diffusers.arguments import refuse_others
from petzval.diffusers.loading import find_folder, load_parts
from petzval.diffusers.memory import DecodingMethods, refuse_dtypes
from petzval.diffusers.networks import (
    LensAutoencoder,
    LensGptOssEncoder,
    LensTransformer2DModel,
)
from petzval.diffusers.schedule import set_timesteps
from petzval.diffusers.text import (
    GuidedDenoiser,
    PromptEmbeds,
    PromptMask,
    Texts,
    read_negatives,
    read_prompts,
)
from petzval.errors import MissingExtraError, RequestError
from petzval.inference import numerics
from petzval.inference.variants import CARD, Defaults
from petzval.resolution import Resolution, resolve
from petzval.shapes import LatentTokens
from petzval.weights.writing import MAX_SHARD_BYTES, Component, save_checkpoint

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
CALLBACK_TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")
PARTS = ("scheduler", "vae", "text_encoder", "tokenizer", "transformer")

Callback = Callable[["LensPipeline", int, Any, dict[str, Any]], dict[str, Any] | None]


class LensPipeline(LoraMethods, DecodingMethods, DiffusionPipeline):
    """Words in, pictures out, by Lens.

    Args:
        scheduler: diffusers' `FlowMatchEulerDiscreteScheduler`, or another for flows.
        vae, transformer: the networks.
        text_encoder, tokenizer: may be None where only `prompt_embeds` are given.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012  diffusers declares it so
    _callback_tensor_inputs = list(CALLBACK_TENSORS)

    def __init__(
        self,
        scheduler: Any,
        vae: LensAutoencoder,
        text_encoder: LensGptOssEncoder | None,
        tokenizer: PromptTokenizer | None,
        transformer: LensTransformer2DModel,
    ) -> None:
        super().__init__()
        self.register_modules(
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=transformer,
        )
        self._begin_loras()
        self.defaults = Defaults()
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        revision: str = "main",
        local_files_only: bool = False,
        **parts: Any,
    ) -> LensPipeline:
        """Load a published folder: by path, by a name of `petzval models`, or owner/name.

        A repository is fetched as `petzval pull` does: numbers and settings alone, each held to
        the hash that is listed, and nothing in it is run.

        Args:
            torch_dtype: float32 (without one) or bfloat16; `dtype` is the same.
            revision: a branch or commit of a repository.
            local_files_only: ask no server.
            parts: components that are at hand, in place of the folder's; `text_encoder=None` and
                `tokenizer=None` leave those out. Arguments that ask for nothing, such as
                `use_safetensors=True` and `variant=None`, are passed over.

        Raises:
            RequestError: unknown name, dtype or part.
            CheckpointError, ConfigError: files are missing, damaged or of another model.
            DownloadError: a repository cannot be fetched.
        """
        others = {name: parts.pop(name) for name in list(parts) if name not in PARTS}
        refuse_others(others, f"parts are {', '.join(PARTS)}")
        located = find_folder(
            pretrained_model_name_or_path, revision=revision, offline=local_files_only
        )
        loaded = load_parts(located.folder, torch_dtype or dtype, without=tuple(parts))
        pipeline = cls(**loaded, **parts)
        pipeline.defaults = located.defaults
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **others: Any,
    ) -> None:
        """Write a published folder, all or nothing, which this class and `petzval.load` read.

        The scheduler is written as published; the language model's head, which no picture needs,
        is not.

        Raises:
            RequestError: a part is missing or would not be what is written; pickles, uploads.
            CheckpointError: it cannot be written; what was there is then as it was.
        """
        if not safe_serialization or push_to_hub or variant or use_flashpack or others:
            raise RequestError(
                "a folder is written as safetensors, without variants, and not sent anywhere",
                "leave the other arguments out",
            )
        if self.text_encoder is None or self.tokenizer is None:
            raise RequestError(
                "a checkpoint has a text encoder and a tokenizer; this pipeline has not",
                "load it with them, or save the network alone: pipe.transformer.save_pretrained",
            )
        if type(self.scheduler) is not FlowMatchEulerDiscreteScheduler:
            raise RequestError(
                f"a published folder holds no {type(self.scheduler).__name__}",
                "set a FlowMatchEulerDiscreteScheduler before saving",
            )
        networks = (self.transformer, self.text_encoder, self.vae)
        save_checkpoint(
            Path(save_directory),
            [Component.of(each.network) for each in networks],
            self.tokenizer.folder,
            extra_files={CARD: json.dumps(to_mapping(self.defaults), indent=2) + "\n"},
            max_shard_bytes=_bytes(max_shard_size),
            overwrite=True,
        )

    def to(self, *args: Any, **kwargs: Any) -> LensPipeline:
        """Move, and cast to what `from_pretrained` takes as well.

        Raises:
            RequestError: the dtype cannot hold the model.
        """
        refuse_dtypes(args, kwargs)
        return super().to(*args, **kwargs)

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep the networks in main memory; each is moved to the GPU for its turn.

        Raises:
            MissingExtraError: accelerate is not installed.
        """
        if not is_accelerate_available():
            raise MissingExtraError("accelerate", "diffusers")
        arguments: dict[str, Any] = {"gpu_id": gpu_id} | (
            {} if device is None else {"device": device}
        )
        super().enable_model_cpu_offload(**arguments)

    def enable_sequential_cpu_offload(self, *_: object, **__: object) -> None:
        """Not possible here: our kernels read weights past the hooks of single layers.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            "layer by layer, this pipeline cannot be offloaded", "use enable_model_cpu_offload"
        )

    @property
    def guidance_scale(self) -> float:
        """Of the call that is running; a callback may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the call that is running."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `_interrupt`, to end the call with what there is."""
        return self._interrupt

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        *,
        max_sequence_length: int = DEFAULT_MAX_TOKENS,
        template_date: str = DEFAULT_DATE,
    ) -> tuple[PromptEmbeds, PromptMask]:
        """Prompts → embeddings [batch, text tokens, layers, width], padded, and their mask.

        Raises:
            RequestError: the pipeline has no text encoder, or a setting is out of range.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise RequestError(
                "this pipeline has no text encoder", "give prompt_embeds, or load it with one"
            )
        asked: Any = prompt
        prompts: list[Any] = [asked] if isinstance(asked, str) else []
        if not prompts and isinstance(asked, Sequence):
            prompts = list(cast("Sequence[Any]", asked))
        if not prompts or not all(isinstance(each, str) for each in prompts):
            raise RequestError(f"a prompt is a text, or a list of texts; got {prompt!r:.80}")
        features = self.text_encoder(
            prompts, self.tokenizer, date=template_date, max_tokens=max_sequence_length
        )
        texts = Texts.of(features)
        return texts.embeds, texts.mask

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_embeds_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = DEFAULT_MAX_TOKENS,
        *,
        aspect_ratio: str | None = None,
        base_resolution: int | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        template_date: str = DEFAULT_DATE,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw.

        Args:
            prompt: one or several; or `prompt_embeds` from `encode_prompt`.
            negative_prompt: what to stay away from; None or blank runs that branch without text.
            height, width: in pixels, multiples of 16; or `aspect_ratio` and `base_resolution`.
            num_inference_steps, guidance_scale: without them, as the checkpoint wants; a scale of
                1 runs one branch in place of two.
            num_images_per_prompt: pictures of each prompt, one behind the other.
            generator: of the noise. `torch.Generator().manual_seed(s)` makes the picture that
                `petzval generate --seed s` makes; a list has one for each picture.
            latents: the noise itself, [pictures, tokens, channels].
            output_type: "pil"; "np" and "pt" are floats in [0, 1]; "latent" is not decoded.
            callback_on_step_end: called as (pipeline, step, timestep, tensors); what it returns
                replaces those tensors.
            callback_on_step_end_tensor_inputs: of latents, prompt_embeds, negative_prompt_embeds.
            max_sequence_length: template and prompt together, in tokens.
            sigmas: noise levels before the shift, in place of evenly spaced ones.
            mu: the shift; without it the exact empirical one.
            template_date: the date in the chat template.

        Raises:
            RequestError: the request cannot be served.
            NumericsError: a number stopped being finite.
        """
        _check_choices(output_type, callback_on_step_end_tensor_inputs, num_images_per_prompt)
        base = self.defaults.base if base_resolution is None else base_resolution
        resolution = resolve(aspect=aspect_ratio, height=height, width=width, base=base)
        encode = partial(
            self.encode_prompt, max_sequence_length=max_sequence_length, template_date=template_date
        )
        texts = read_prompts(prompt, prompt_embeds, prompt_embeds_mask, encode)
        negatives = read_negatives(
            negative_prompt, negative_prompt_embeds, negative_prompt_embeds_mask, texts, encode
        )
        texts, negatives = (each.repeated(num_images_per_prompt) for each in (texts, negatives))
        device = self._execution_device
        steps = self.defaults.steps if num_inference_steps is None else num_inference_steps
        levels = set_timesteps(
            self.scheduler, steps, resolution, device=device, sigmas=sigmas, mu=mu
        )
        noise = self._noise(len(texts.mask), resolution, generator, latents)
        self._guidance_scale = self.defaults.guidance if guidance_scale is None else guidance_scale
        self._follow_loras(device)
        modulations = self.transformer.modulations(levels)
        denoiser = GuidedDenoiser(self.transformer, resolution.grid, modulations, device)
        heard = (callback_on_step_end, tuple(callback_on_step_end_tensor_inputs))
        tokens = self._denoise(denoiser, noise, texts, negatives, *heard)
        images = self._output(tokens, resolution, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _denoise(
        self,
        denoiser: GuidedDenoiser,
        tokens: LatentTokens,
        texts: Texts,
        negatives: Texts,
        callback: Callback | None,
        wanted: Sequence[str],
    ) -> LatentTokens:
        """The loop: velocity, step, callback."""
        tensors = {
            "latents": tokens,
            "prompt_embeds": texts.embeds,
            "negative_prompt_embeds": negatives.embeds,
        }
        denoiser.read(texts, negatives)
        self._interrupt, self._num_timesteps = False, len(self.scheduler.timesteps)
        bar: Any = self.progress_bar
        with bar(total=self._num_timesteps) as progress:
            for index, timestep in enumerate(self.scheduler.timesteps):
                tokens = tensors["latents"]
                velocity = denoiser.velocity(tokens, index, self._guidance_scale)
                [tokens] = self.scheduler.step(velocity, timestep, tokens, return_dict=False)
                numerics.check_finite(tokens, f"step {index + 1}", self.transformer.dtype)
                tensors["latents"] = tokens
                if callback is not None:
                    shown = {name: tensors[name] for name in wanted}
                    changed = callback(self, index, timestep, shown) or {}
                    tensors |= {name: changed[name] for name in wanted if name in changed}
                    read = (texts.embeds, negatives.embeds)
                    texts = replace(texts, embeds=tensors["prompt_embeds"])
                    negatives = replace(negatives, embeds=tensors["negative_prompt_embeds"])
                    if read[0] is not texts.embeds or read[1] is not negatives.embeds:
                        denoiser.read(texts, negatives)
                progress.update()
                if self._interrupt:
                    break
        return tensors["latents"]

    def _noise(
        self,
        num_images: int,
        resolution: Resolution,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None,
    ) -> LatentTokens:
        channels, device = self.transformer.network.config.in_channels, self._execution_device
        shape = (num_images, resolution.num_tokens, channels)
        if latents is not None:
            if tuple(latents.shape) != shape:
                raise RequestError(
                    f"latents of shape {list(latents.shape)}, expected {list(shape)}: pictures, "
                    "tokens, channels"
                )
            return latents.to(device, torch.float32)
        given: Any = generator if isinstance(generator, list) else [generator]
        if not all(each is None or isinstance(each, torch.Generator) for each in given):
            raise RequestError(
                f"a generator is one of torch's, or a list of them; got {generator!r:.80}",
                "write torch.Generator().manual_seed(7)",
            )
        if isinstance(generator, list) and len(generator) != num_images:
            raise RequestError(f"{len(generator)} generators for {num_images} pictures")
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

    def _output(self, tokens: LatentTokens, resolution: Resolution, output_type: str) -> Any:
        if output_type == "latent":
            return tokens
        pictures = self.vae.decode_tokens(tokens, resolution.grid)
        numerics.check_finite(pictures, "decoded picture", self.vae.dtype)
        if output_type == "pil":
            return [Image.fromarray(pixels) for pixels in numerics.to_pixels(pictures)]
        scaled = (pictures.float() / 2 + 0.5).clamp(0, 1)
        return scaled if output_type == "pt" else scaled.permute(0, 2, 3, 1).cpu().numpy()


def _bytes(size: int | str | None) -> int:
    """A size as diffusers writes it: a number of bytes, or "5GB"."""
    if size is None or isinstance(size, int):
        return MAX_SHARD_BYTES if size is None else size
    match = re.fullmatch(r"(\d{1,9})\s*([KMG]?)B", size.strip().upper(), re.ASCII)
    if match is None:
        raise RequestError(f"cannot read the size {size!r:.40}", 'write it like "5GB"')
    return int(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2]]


def _check_choices(output_type: str, tensor_inputs: Sequence[str], num_images: int) -> None:
    if output_type not in OUTPUT_TYPES:
        raise RequestError(
            f"unknown output_type {output_type!r:.40}", f"known are {', '.join(OUTPUT_TYPES)}"
        )
    for name in tensor_inputs:
        if name not in CALLBACK_TENSORS:
            raise RequestError(
                f"callback_on_step_end_tensor_inputs has {name!r:.40}",
                f"known are {', '.join(CALLBACK_TENSORS)}",
            )
    if num_images < 1:
        raise RequestError(f"num_images_per_prompt must be at least 1, got {num_images}")

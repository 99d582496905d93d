"""Checkpoints on the Hugging Face hub: timm's repositories, and how a file of one is had."""

from pathlib import Path

# timm's own repositories of the models' default weights.
HUB = {
    "deit_base_patch16_224": "timm/deit_base_patch16_224.fb_in1k",
    "deit_small_patch16_224": "timm/deit_small_patch16_224.fb_in1k",
    "deit_tiny_patch16_224": "timm/deit_tiny_patch16_224.fb_in1k",
    "deit_base_distilled_patch16_224": "timm/deit_base_distilled_patch16_224.fb_in1k",
    "deit_small_distilled_patch16_224": "timm/deit_small_distilled_patch16_224.fb_in1k",
    "deit_tiny_distilled_patch16_224": "timm/deit_tiny_distilled_patch16_224.fb_in1k",
    "vit_base_patch16_224": "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_small_patch16_224": "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    "deit3_base_patch16_224": "timm/deit3_base_patch16_224.fb_in1k",
    "deit3_small_patch16_224": "timm/deit3_small_patch16_224.fb_in1k",
    "vit_base_patch16_clip_224": "timm/vit_base_patch16_clip_224.openai_ft_in1k",
}


def fetch(repository: str, revision: str) -> Path:
    """The repository's model.safetensors, from the hub's cache or downloaded into it, config.json beside it if any."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise ValueError("downloading needs huggingface_hub: pip install huggingface_hub") from error
    print(f"model.safetensors and config.json of {repository} at revision {revision}, from the Hugging Face hub")
    try:
        path = Path(hf_hub_download(repository, "model.safetensors", revision=revision))
        try:
            hf_hub_download(repository, "config.json", revision=revision)
        except EntryNotFoundError:
            print(f"{repository} has no config.json, with which the model could be compared")
    except Exception as error:  # the hub raises its own, httpx's and OSError for one thing: it cannot be had
        raise ValueError(
            f"cannot get model.safetensors of {repository} at revision {revision} from the Hugging Face hub, nor is it "
            f"in the cache ({type(error).__name__}); give a local file with --source"
        ) from error
    print(f"commit {path.parent.name}")  # of the hub's cache, which keeps files by commit
    return path

"""Run by test_canvas_compat under diffusers 0.30 and transformers 4.55: print what they load of a pipeline, as JSON.

Imports nothing of this project.
"""

import hashlib
import json
import sys

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline

# transformers 5 would otherwise keep the file's half precision for the text encoder alone.
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None, torch_dtype=torch.float32)
digests = {
    f"{component}/{name.removeprefix('text_model.')}": hashlib.sha256(tensor.float().numpy().tobytes()).hexdigest()
    for component in ("unet", "vae", "text_encoder")
    for name, tensor in getattr(pipeline, component).state_dict().items()
    if not name.endswith("position_ids")
}
ids = pipeline.tokenizer(json.loads(sys.argv[2]), padding="max_length").input_ids
with torch.no_grad():
    embeds = pipeline.text_encoder(torch.tensor(ids))[0]
    noise = torch.randn(len(ids), 12, 8, 8, generator=torch.Generator().manual_seed(0))
    noise_pred = pipeline.unet(noise, torch.full((len(ids),), 500), embeds).sample
print(
    json.dumps(
        {
            "versions": [diffusers.__version__, transformers.__version__],
            "digests": digests,
            "ids": ids,
            "noise_pred": noise_pred.flatten().tolist(),
        }
    )
)

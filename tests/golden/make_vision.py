"""Writes the golden vision transformers of timm and of torchvision: small random ones, with what the libraries compute.

Needs timm and torchvision besides what make.py needs (written with timm 1.0 and torchvision 0.30), and no network:

    python tests/golden/make_vision.py tests/golden

`timm` has a config of timm beside it, whose architecture says the number of heads; its `pixels` are in [0, 1], as the
config says that they are normalised. `torchvision` is a file of tensors alone.
"""

import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torchvision.models import VisionTransformer as Torchvision

from models import scramble


def write(out, name, model, seed, save, mean, std):
    where = os.path.join(out, name)
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(where)
    scramble(model, seed)
    model.eval()
    save(where)
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    shift = [torch.tensor(x, dtype=torch.float64).reshape(1, 3, 1, 1) for x in (mean, std)]
    with torch.no_grad():
        output = model.double()((pixels.double() - shift[0]) / shift[1])
    save_file(dict(pixels=pixels, output=output.float().contiguous()), os.path.join(where, "expected.safetensors"))
    print(name, tuple(output.shape))


def main(out):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    model = VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=3, mlp_ratio=1.5, num_classes=3)

    def timm(where):
        config = dict(architecture="vit_tiny_patch16_224", num_classes=3, num_features=12, global_pool="token",
                      model_args=dict(num_classes=3, in_chans=3, global_pool="token", img_size=[8, 8], patch_size=4, embed_dim=12, depth=2,
                                      num_heads=3, mlp_ratio=1.5),
                      pretrained_cfg=dict(tag="augreg_in21k", input_size=[3, 8, 8], interpolation="bicubic", crop_pct=0.9,
                                          mean=mean, std=std, num_classes=3, first_conv="patch_embed.proj", classifier="head"))
        with open(os.path.join(where, "config.json"), "w") as file:
            json.dump(config, file, indent=1)
        save_file(model.state_dict(), os.path.join(where, "model.safetensors"))

    write(out, "timm", model, 0, timm, mean, std)
    other = Torchvision(image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=6, num_classes=3)
    write(out, "torchvision", other, 1, lambda where: torch.save(other.state_dict(), os.path.join(where, "model.pth")),
          [0.0] * 3, [1.0] * 3)


main(sys.argv[1])

"""Peak memory and seconds of reorganising and restoring a sharded model, beside loading and permuting it in memory.

    python bench/large_models.py [--layers 12] [--hidden 2048]

First the graph alone of a model with the shapes of Llama 3 8B (meta-llama/Meta-Llama-3-8B, config.json): its 16 GB of weights
are a hole in a file, which is mapped and never read.

Then ResNet-50 as published (25.6 million parameters, images of 224 × 224): tracing, discovery, and the proof of every group
in float64.

Then a Llama-shaped model in Hugging Face's layout, with random bfloat16 weights written shard by shard to a temporary folder
(2 GB by default). Each part runs in a process of its own, whose peak resident memory is the kernel's count. Ours opens the
folder, finds the groups, proves them in float64, reorders all of them at random, certifies that very plan and writes the
shards; then restores them, which must give every byte back. The peer loads all shards with the safetensors library, permutes
the units of every MLP at random, without any discovery, proof or certificate, and saves the shards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peers.memory import resident
from safetensors.torch import load_file, save_file

from cipm.load import huggingface
from cipm.load.checkpoint import Checkpoint
from cipm.pipeline.commands import reorganize_job, restore_job
from cipm.symmetry import discover_groups, prove
from cipm.testing import networks_residual
from cipm.trace import from_exported

INDEX = "model.safetensors.index.json"
MB, GB = 2**20, 1e9


def ends(vocabulary: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what stands before and behind the blocks."""
    return {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,),
            "lm_head.weight": (vocabulary, hidden)}


def block(hidden: int, wide: int, pairs: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a block's weights."""
    return {"self_attn.q_proj.weight": (hidden, hidden), "self_attn.k_proj.weight": (pairs, hidden),
            "self_attn.v_proj.weight": (pairs, hidden), "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.gate_proj.weight": (wide, hidden), "mlp.up_proj.weight": (wide, hidden),
            "mlp.down_proj.weight": (hidden, wide), "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,)}


def make(folder: Path, layers: int, hidden: int, vocabulary: int) -> int:
    """Write the model, a shard for every block and one for the rest; return its bytes."""
    folder.mkdir()
    wide, pairs = hidden * 4, hidden // 4
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": wide,
              "num_hidden_layers": layers, "num_attention_heads": hidden // 64, "num_key_value_heads": pairs // 64,
              "head_dim": 64, "vocab_size": vocabulary, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
              "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    shards = [ends(vocabulary, hidden),
              *({f"model.layers.{n}.{key}": shape for key, shape in block(hidden, wide, pairs).items()} for n in range(layers))]
    places, size = {}, 0
    for number, shapes in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        generator = torch.Generator().manual_seed(number)
        tensors = {key: (torch.randn(shape, generator=generator) / shape[-1] ** 0.5 if len(shape) > 1 else torch.ones(shape))
                   .to(torch.bfloat16) for key, shape in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        size += sum(t.nbytes for t in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    return size


def make_8b(folder: Path) -> int:
    """Write a folder with the configuration of Llama 3 8B and a file of zeros that takes no room; return its bytes."""
    hidden, wide, pairs, vocabulary = 4096, 14336, 1024, 128_256
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": wide,
              "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": vocabulary,
              "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu",
              "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = ends(vocabulary, hidden)
    for number in range(32):
        shapes |= {f"model.layers.{number}.{key}": shape for key, shape in block(hidden, wide, pairs).items()}
    header, size = {}, 0
    for key, shape in shapes.items():
        start, size = size, size + 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, size]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    return size


def discovery(model: Path, scratch: Path) -> str:
    """Open the model and find its groups, from shapes alone."""
    start = time.perf_counter()
    checkpoint = huggingface.open(model)
    opened = time.perf_counter()
    found = discover_groups(checkpoint)
    return f"{opened - start:.1f} s to the graph, {time.perf_counter() - opened:.1f} s discovery of {len(found.groups)} groups"


def resnet50() -> torch.nn.Module:
    """Return the network with the widths of the published one, drawn at random."""
    torch.manual_seed(0)
    return networks_residual.resnet50().eval()


def published_resnet(model: Path, scratch: Path) -> str:
    """Trace ResNet-50, find its groups and prove them."""
    start = time.perf_counter()
    with torch.no_grad():
        program = torch.export.export(resnet50(), (torch.zeros(2, 3, 224, 224),), strict=False,
                                      dynamic_shapes=({0: torch.export.Dim("batch")},))
    checkpoint = Checkpoint("pt2", *from_exported(program.run_decompositions({})))
    traced = time.perf_counter()
    found = discover_groups(checkpoint)
    discovered = time.perf_counter()
    proof = prove(checkpoint, found).certificate
    return (f"{traced - start:.1f} s to the graph, {discovered - traced:.1f} s discovery of {len(found.groups)} groups, "
            f"{time.perf_counter() - discovered:.1f} s proof: max relative difference {proof.max_rel:.1e}, "
            f"{'passed' if proof.passed else 'FAILED'}")


def reorganize(model: Path, scratch: Path) -> str:
    """Reorder every group of the model at random, with its proof; return what the certificate says."""
    request = {"model": str(model), "order": "random", "orders": {}, "seed": 0, "filename": "reordered", "forms": []}
    plan = reorganize_job(request, scratch, lambda event: None)["certificate"]["plan"]
    return f"max relative difference {plan['max_rel']:.1e}, {'passed' if plan['passed'] else 'FAILED'}"


def restore(model: Path, scratch: Path) -> str:
    """Restore the reordered model; return whether its bytes are those of the first."""
    restore_job({"model": str(scratch / "reordered"), "filename": "restored"}, scratch, lambda event: None)
    return "bytes equal" if digests(model) == digests(scratch / "restored") else "BYTES DIFFER"


def peer(model: Path, scratch: Path) -> str:
    """Load all shards, permute the units of every MLP, save the shards."""
    names = sorted(path.name for path in model.glob("*.safetensors"))
    shards = {name: load_file(model / name) for name in names}
    of = {key: shard for shard in shards.values() for key in shard}
    for key in [key for key in of if key.endswith("mlp.gate_proj.weight")]:
        order = torch.randperm(of[key][key].shape[0])
        for part, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            name = key.replace("gate_proj", part)
            of[name][name] = of[name][name].index_select(axis, order)
    (scratch / "peer").mkdir()
    for name, shard in shards.items():
        save_file(shard, scratch / "peer" / name, metadata={"format": "pt"})
    return "MLP units alone, nothing proved"


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _measured(job: Callable[[Path, Path], str], model: Path, scratch: Path, results: multiprocessing.Queue) -> None:
    before, start = resident(), time.perf_counter()
    said = job(model, scratch)
    results.put((time.perf_counter() - start, before, resident(), said))


def measure(name: str, job: Callable[[Path, Path], str], model: Path, scratch: Path, size: int) -> None:
    """Run a job in a process of its own and print its line."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_measured, args=(job, model, scratch, results))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{name} ended with {process.exitcode}")
    seconds, before, peak, said = results.get()
    print(f"{name:32} {seconds:8.1f} {before / MB:10,.0f} {peak / MB:10,.0f} {peak / size:8.2f}  {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'':32} {'seconds':>8} {'start MiB':>10} {'peak MiB':>10} {'of model':>8}")
        shapes = Path(folder, "shapes")
        measure("Llama 3 8B, shapes alone", discovery, shapes, Path(folder), make_8b(shapes))
        size = sum(parameter.nbytes for parameter in resnet50().parameters())
        measure("ResNet-50, traced and proved", published_resnet, shapes, Path(folder), size)
        model = Path(folder, "model")
        size = make(model, options.layers, options.hidden, options.vocabulary)
        print(f"{size / GB:.2f} GB in {options.layers + 1} shards, bfloat16:")
        for name, job in (("reorganize, proved", reorganize), ("restore", restore), ("peer: load, permute, save", peer)):
            measure(name, job, model, Path(folder), size)


if __name__ == "__main__":
    main()

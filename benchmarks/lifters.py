"""The lifters of the package: made from a training run, judged, and the tables that show it.

    python -m benchmarks.lifters ship RUN --joints-2d detected
    python -m benchmarks.lifters judge --motion cmu17_60hz.npz --photographs real_multiview
    python -m benchmarks.lifters page

RUN is the folder that `unihpe train --preset lifter-detected` left; its model goes into the package, with a card.
`judge` measures both lifters and writes it on their cards; `page` writes the tables from the cards.

A card is the JSON beside a lifter's weights: how it was trained, how good it is, and what noise in its 2D joints costs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import unihpe_ref
from benchmarks.environment import ROOT
from multicontrast._checks import three_beats
from multicontrast.metrics import mpjpe, pa_mpjpe
from unihpe_ref.checkpoint import load_model, save_model
from unihpe_ref.data import Motion, read_mocap
from unihpe_ref.files import write_whole
from unihpe_ref.lifter import SHIPPED, Lifter, load_lifter
from unihpe_ref.models import UniHPE
from unihpe_ref.runs import CONFIG, ENVIRONMENT, EVALUATION, LOG, MODEL, evaluate_model, open_source

ASSETS = Path(unihpe_ref.__file__).with_name("assets")  # of the package that runs, installed or not
PAGES = (ROOT / "docs" / "unihpe" / "lift.md", ASSETS / "LIFTER.md")
NOISE = (0.0, 0.004, 0.01, 0.02)
"""Standard deviations in shares of the box, of which a person fills 0.8."""
FOCAL_LENGTHS = (1.25, 0.8)
"""What a guess may be off by."""
_PATH = "2D to 3D, flip"
_METRICS = ("MPJPE", "PA-MPJPE")
_REGION = re.compile(r"(<!-- table: lifters -->\n).*?(<!-- end of table -->)", re.DOTALL)


def card_path(joints_2d: str) -> Path:
    """Where the card of a shipped lifter is."""
    return (ASSETS / SHIPPED[joints_2d]).with_suffix(".json")


def ship(run: Path, joints_2d: str) -> list[Path]:
    """Puts the model of a run into the package, in half precision, and begins its card.

    The lifter for detected joints keeps the pair that lifts and nothing else: the other is there for retrieval.
    """
    model, config = load_model(run / MODEL)
    if joints_2d == "detected":
        config = config.override(preset="lifter-detected", **{"model.lifting_only": True})
        pair = UniHPE(config.model)
        weights = model.state_dict()
        pair.load_state_dict({name: weights[name] for name in pair.state_dict()})
        model = pair.eval()
    environment = json.loads((run / ENVIRONMENT).read_text())
    last = json.loads((run / LOG).read_text().splitlines()[-1])
    steps = {name: getattr(config, name).steps for name in ("lifting", "companions")}
    card = {
        "model": "lifter",
        "preset": config.preset,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stored": "float16",
        "trained": {
            "steps": steps,
            "torch": environment["packages"]["torch"],
            "threads": environment["threads"],
            "processor": environment["processor"],
            "wall_minutes": round(last["seconds"] / 60, 1),
        },
        "evaluation": _rounded(json.loads((run / EVALUATION).read_text())),
    }
    weights_path = ASSETS / SHIPPED[joints_2d]
    save_model(model, config, weights_path, dtype=torch.float16)
    write_whole(card_path(joints_2d), (json.dumps(card, indent=1) + "\n").encode())
    return [weights_path, card_path(joints_2d)]


def judge(joints_2d: str, motion: Motion, photographs: Path | None) -> Path:
    """Adds to a card what noise and a wrong focal length cost on held-out takes, and how far off photographs are."""
    lifter = load_lifter(joints_2d=joints_2d)
    card = json.loads(card_path(joints_2d).read_text())
    card["joint_noise"] = {}
    for noise in NOISE:
        config = lifter.config.override(**{"evaluation.joint_noise": noise})
        errors = evaluate_model(lifter.model, config, motion).path(_PATH).frame_mean
        card["joint_noise"][str(noise)] = {metric: round(errors[metric], 3) for metric in _METRICS}
    card["focal_length"] = {str(factor): _wrong_focal_length(lifter, motion, factor) for factor in FOCAL_LENGTHS}
    if photographs is not None:
        card["photographs"] = _photographs(lifter, photographs, "kp2d_det_full")
        card["photographs_without_detector"] = _photographs(lifter, photographs, "kp2d_full")
    write_whole(card_path(joints_2d), (json.dumps(card, indent=1) + "\n").encode())
    return card_path(joints_2d)


def _wrong_focal_length(lifter: Lifter, motion: Motion, factor: float) -> dict[str, float]:
    """Errors on held-out takes with exact joints, where the focal length is taken for ``factor`` times itself."""
    config = lifter.config.override(**{"data.view": "camera"})
    source = open_source(motion, config, images=False).split("test")
    batch = source.evaluation_batch(source.evaluation_indices(config.evaluation.stride))
    intrinsics = torch.diag_embed(torch.cat((factor * batch.focal, torch.ones(len(batch), 1)), -1))
    intrinsics[:, :2, 2] = batch.principal
    return _errors(lifter.lift(batch.joints_2d, intrinsics=intrinsics).joints_3d, batch.joints_3d)


def _photographs(lifter: Lifter, folder: Path, joints: str) -> dict[str, float]:
    """Errors on real pictures; the truth is triangulated from what a detector found in four of them.

    ``joints`` are the detector's ("kp2d_det_full"), or the projections of the truth ("kp2d_full").
    """
    held = np.load(folder / "annot.npz", allow_pickle=False)
    rows = np.flatnonzero(held["ok"])
    pixels = torch.from_numpy(held[joints][rows][..., :2]).float()
    truth = torch.from_numpy(held["joints_3d_cam"][rows]).float()
    truth = truth - truth[:, :1]
    lifted = lifter.lift(pixels, intrinsics=torch.from_numpy(held["K_full"][rows]).float()).joints_3d
    return {"count": len(rows)} | _errors(lifted, truth)


def _errors(lifted: Tensor, truth: Tensor) -> dict[str, float]:
    values = {"MPJPE": mpjpe(lifted, truth), "PA-MPJPE": pa_mpjpe(lifted, truth)}
    return {name: round(1000 * float(value), 3) for name, value in values.items()}


def table() -> str:
    """MPJPE / PA-MPJPE of both lifters, by what is wrong with their joints."""
    cards = {joints_2d: json.loads(card_path(joints_2d).read_text()) for joints_2d in SHIPPED}
    head = ["2D joints", *(f"lifter for {joints_2d} joints" for joints_2d in SHIPPED)]
    lines = [head, ["---", *["---:"] * len(SHIPPED)]]
    for noise in NOISE:
        name = f"noise of {100 * noise:g} % of the box ({500 * noise:g} px for a person of 400)" if noise else "exact"
        lines.append([name, *(_both(card["joint_noise"][str(noise)]) for card in cards.values())])
    count = next(iter(cards.values()))["photographs"]["count"]
    lines.append([f"a detector's, {count} photographs", *(_both(card["photographs"]) for card in cards.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(page: str) -> str:
    """The page with its table generated anew."""
    return _REGION.sub(lambda match: f"{match[1]}\n{table()}\n\n{match[2]}", page)


def _both(errors: dict[str, float]) -> str:
    return " / ".join(f"{errors[metric]:.1f}" for metric in _METRICS)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 for input that does not fit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lifters", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shipper = commands.add_parser("ship", help="put the model of a training run into the package")
    shipper.add_argument("run", type=Path)
    shipper.add_argument("--joints-2d", choices=tuple(SHIPPED), required=True)
    judger = commands.add_parser("judge", help="measure both lifters, and write it on their cards")
    judger.add_argument("--motion", type=Path, required=True, help="the recording (npz)")
    judger.add_argument("--photographs", type=Path, help="folder of the real crops; left as it was without it")
    commands.add_parser("page", help="write the tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if options.command == "ship":
            if not (options.run / CONFIG).exists():
                needed = "`ship` needs the folder of a finished training run"
                raise ValueError(three_beats(needed, str(options.run), "`unihpe train --out` names it."))
            print(*ship(options.run, options.joints_2d), sep="\n")
        elif options.command == "judge":
            motion = read_mocap(options.motion)
            for joints_2d in SHIPPED:
                print(judge(joints_2d, motion, options.photographs), flush=True)
        else:
            for page in PAGES:
                write_whole(page, render(page.read_text()).encode())
                print(page)
    except (ValueError, OSError) as error:
        print(f"lifters: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

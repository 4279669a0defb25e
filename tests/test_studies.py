"""The studies: equal budgets, trials that run once, and a page that agrees with the results."""

import json
import re

import pytest
import torch

pytest.importorskip("timm", reason="the studies train UniHPE; install the extra `unihpe`")

from benchmarks.studies import page, tables, trials
from benchmarks.studies.__main__ import main
from benchmarks.studies.plan import RATES, SEEDS, STUDIES, TUNED_ROWS, Trial, rows
from benchmarks.studies.runs import keep_run, read_run
from unihpe_ref.checkpoint import save_model
from unihpe_ref.data import generate_motion
from unihpe_ref.data.protocols import PROTOCOLS
from unihpe_ref.models import UniHPE
from unihpe_ref.presets import PRESETS, preset
from unihpe_ref.runs import open_source

PICTURES = {
    "data.image_size": (32, 32),
    "model.encoder_width": 16,
    "model.encoder_layers": 1,
    "model.decoder_width": 32,
    "model.embedding_dim": 32,
    "sampler.steps": 2,
    "evaluation.stride": 60,
}


def test_every_row_of_a_study_has_the_same_budget():
    planned = trials.planned_trials()
    assert len({trial.name for trial in planned}) == len(planned)
    for study in STUDIES:
        budgets = set()
        for row in rows(study):
            config = Trial(study, row, 0).config
            with_pictures = config.stage2.steps + config.stage3.steps
            sizes = (config.stage2.batch_size, config.stage3.batch_size, config.evaluation.stride)
            rate = "tuned" if study in RATES else config.stage3.learning_rate
            budgets.add((with_pictures, *sizes, config.data, rate))
        assert len(budgets) == 1, study


def test_the_fair_table_has_equal_parts_and_equal_losses():
    """Parameters within 12 %, and decoding losses that start within a factor of two beside one weight of L_cl."""
    counts, starts = {"encoder": [], "decoder": []}, []
    motion = generate_motion(0, num_subjects=3, num_test_subjects=1, seconds=2.0)
    for pair in TUNED_ROWS["table4-fair"]:
        config = Trial("table4-fair", f"{pair}-4e-3", 0).config
        torch.manual_seed(0)
        model = UniHPE(config.model)
        for part, coordinates in (("encoder", "2d"), ("decoder", "3d")):
            counts[part].append(sum(p.numel() for p in getattr(model, f"{part}_{coordinates}").parameters()))
        batch = open_source(motion, config, images=False).evaluation_batch(torch.arange(0, len(motion), 7))
        embeddings = {"2d": model.encode(**batch.inputs_2d())}
        args = (batch.joints_2d_normalised(), batch.joints_3d, batch.box_info())
        starts.append(model.decoding_losses(embeddings, *args, generator=torch.Generator().manual_seed(0))[1].item())
        assert config.stage3.contrastive_weight == 0.04
    for found in counts.values():
        assert max(found) < 1.12 * min(found)
    assert max(starts) < 2 * min(starts)


def test_the_rate_with_the_least_error_of_the_first_seed_is_repeated(tmp_path):
    """In Table 6 by the sum of both errors; before all rates have been run, by those that have."""

    def write(row, rate, **errors):
        trial = Trial("table6-fair", f"{row}-{rate}", 0)
        paths = {name.replace("_", " "): {"frame_mean": {"MPJPE": error}} for name, error in errors.items()}
        made = {"stretch": 1.0, "config": trial.config.to_dict(), "result": {"poses": {"paths": paths}}}
        trials.result_path(trial, tmp_path).write_text(json.dumps(made))

    def repeated(row):
        planned = trials.planned_trials(tmp_path)
        return [c.row for c in planned if c.study == "table6-fair" and c.row.startswith(f"{row}-") and c.seed]

    assert trials.chosen_rate("table6-fair", "no-contrast", tmp_path) is None
    assert repeated("no-contrast") == []
    write("no-contrast", "2e-3", **{"2D_to_3D": 60.0, "image_to_3D": 90.0, "mean_pose": 1.0})
    assert repeated("no-contrast") == ["no-contrast-2e-3"] * len(SEEDS[1:])
    write("no-contrast", "8e-3", **{"2D_to_3D": 70.0, "image_to_3D": 79.0, "mean_pose": 9.0})
    assert repeated("no-contrast") == ["no-contrast-8e-3"] * len(SEEDS[1:])
    trials.result_path(Trial("table6-fair", "no-contrast-2e-3", 1), tmp_path).touch()  # made when it was the best
    assert sorted(repeated("no-contrast")) == ["no-contrast-2e-3", "no-contrast-8e-3", "no-contrast-8e-3"]


def test_rows_differ_in_what_their_names_say():
    def changed(study, row, other):
        a, b = (Trial(study, name, 0).config for name in (row, other))
        flat = [
            {f"{k}.{n}": v for k, part in c.to_dict().items() if isinstance(part, dict) for n, v in part.items()}
            for c in (a, b)
        ]
        return {name for name in flat[0] if flat[0][name] != flat[1][name]}

    assert changed("table4", "mlp-mlp", "transformer-mlp") == {"model.pose_encoder"}
    assert changed("table4", "mlp-mlp", "mlp-diffusion") == {"model.decoder"}
    assert changed("table6", "pairs", "pairs-triplet") == {"stage2.alpha", "stage3.alpha"}
    assert changed("table6", "pairs-triplet", "pairs-triplet-token") == {"model.modality_token"}
    assert changed("table6-fair", "pairs-4e-3", "pairs-triplet-4e-3") == {"stage2.alpha", "stage3.alpha"}
    assert changed("table6-fair", "pairs-4e-3", "pairs-2e-3") == {"stage3.learning_rate"}
    assert changed("table6-fair", "no-contrast-4e-3", "pairs-4e-3") == {
        *(f"stage{k}.steps" for k in (1, 2, 3)),
        *("stage2.alpha", "stage3.alpha", "stage3.contrastive_weight"),
    }
    assert changed("fig5", "pairs", "pairs-triplet") == {"stage2.alpha", "stage3.alpha"}
    assert changed("exact", "sampled", "exact") == {"stage2.negatives"}
    assert changed("exact", "sampled", "sampled-equal-time") == set()


def small_trial(monkeypatch, study, row):
    """A trial of the plan, shrunk to seconds."""
    planned = Trial.config.fget
    steps = {f"stage{k}.{name}": value for k in (1, 2, 3) for name, value in (("batch_size", 6), ("warmup_steps", 1))}

    def config(self):
        full = planned(self)
        few = {f"stage{k}.steps": min(2, getattr(full, f"stage{k}").steps) for k in (1, 2, 3)}
        return full.override(**PICTURES, **steps, **few, log_every=1)

    monkeypatch.setattr(Trial, "config", property(config))
    return Trial(study, row, 0)


def test_a_trial_is_trained_judged_and_written_once(monkeypatch, tmp_path):
    recording = tmp_path / "recording.npz"
    recording.write_bytes(b"the bytes whose hash is kept")
    motion = generate_motion(0, num_subjects=3, num_test_subjects=1, seconds=2.0)
    for study, row in (("fig5", "pairs-triplet"), ("table6", "no-contrast")):
        trial = small_trial(monkeypatch, study, row)
        path = trials.run_trial(trial, motion, recording, None, tmp_path)
        assert [file.name for file in tmp_path.glob("*.json")].count(f"{trial.name}.json") == 1
        result = trials.read_result(trial, tmp_path)
        assert result["recording"]["name"] == "recording.npz"
        assert str(tmp_path) not in path.read_text()
        assert 0 <= result["result"]["alignment"]["pairs"]["img-3d"]["recall@1"] <= 1
        if study == "fig5":
            assert result["result"]["curve"]["step"] == [1, 2]
            assert len(result["result"]["map"]["img"]) == len(result["result"]["map"]["action"])
        else:
            assert result["result"]["poses"]["paths"]["image to 3D"]["frame_mean"]["MPJPE"] > 0
        path.write_text(path.read_text().replace('"embedding_dim": 32', '"embedding_dim": 64'))
        with pytest.raises(ValueError, match=r"settings of the plan; got others in model\.embedding_dim"):
            trials.read_result(trial, tmp_path)
        path.unlink()
    assert not list(tmp_path.glob(".*.tmp"))


def test_equal_time_needs_the_rows_that_it_follows(tmp_path):
    trial = Trial("exact", "sampled-equal-time", 0)
    with pytest.raises(ValueError, match="needs the result of `sampled`"):
        trials.equal_time_stretch(trial, tmp_path)
    for row, seconds in (("sampled", 40.0), ("exact", 60.0)):
        config = Trial("exact", row, 0).config.to_dict()
        del config["precision"]  # as if it were an option that came later
        made = {"stretch": 1.0, "config": config, "cpu_seconds": {"training": seconds}}
        (tmp_path / f"exact-{row}-0.json").write_text(json.dumps(made))
    assert trials.equal_time_stretch(trial, tmp_path) == 1.5


def test_an_empty_table_has_rows_and_no_numbers(tmp_path):
    text = page.page(tmp_path)
    assert f"0 of the {len(trials.planned_trials(tmp_path))} runs have been made" in text
    assert "| transformer, diffusion |  |  |  |  | 39.3 |" in text


def test_the_committed_page_is_what_the_results_say():
    for written in (page, tables):
        assert written.PAGE.read_text() == written.page(), "run `python -m benchmarks.studies page`"


def test_every_row_of_the_papers_tables_has_its_preset():
    text = tables.page()
    for name in PRESETS:
        if name.startswith("table"):
            assert f"`{name}`" in text
    for name in re.findall(r"(h36m_\w+|3dpw_\w+)", text):
        assert name in PROTOCOLS


def test_the_command_lists_trials_and_speaks_in_words(capsys, tmp_path):
    assert main(["list"]) == 0
    assert "table4-mlp-mlp-0" in capsys.readouterr().out
    assert main(["run", "--motion", str(tmp_path / "missing.npz")]) == 2
    assert "missing.npz" in capsys.readouterr().err
    torch.set_num_threads(1)


def test_a_longer_run_is_kept_as_far_as_it_came(tmp_path):
    config = preset("table4-transformer-diffusion").override(
        **{name: value for name, value in PICTURES.items() if name != "data.image_size"},
        **{"model.image_encoder": "none", "model.encoder_heads": 2, "model.encoder_feedforward": 16},
    )
    motion = generate_motion(0, actions=("walk", "sit"), num_subjects=3, num_test_subjects=1, seconds=2.0)
    run, folder = tmp_path / "run", tmp_path / "kept"
    run.mkdir()
    with pytest.raises(ValueError, match="a run with a model or a checkpoint"):
        keep_run(run, "small", motion, folder)
    checkpoint = run / "checkpoints" / "stage3-00000020"
    checkpoint.mkdir(parents=True)
    save_model(UniHPE(config.model, config.sampler), config, checkpoint / "model.safetensors")
    stages = [("1 poses", 10), ("3 everything", 10), ("3 everything", 20), ("3 everything", 30)]
    records = [{"event": "step", "stage": s, "step": k, "seconds": 6.0 * k, "loss": 1 / 3} for s, k in stages]
    records.insert(0, {"event": "begin", "seconds": 0.0})
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    environment = {"date": "2026", "python": "3", "processor": "any", "cores": 1, "threads": 1, "device": "cpu"}
    (run / "environment.json").write_text(json.dumps(environment | {"packages": {"torch": "2"}, "command": ["secret"]}))
    kept, steps = keep_run(run, "small", motion, folder)
    found = read_run("small", folder)
    assert found == json.loads(kept.read_text())
    assert found["steps"] == {"taken": 20, "planned": config.stage3.steps}
    assert found["wall_minutes"] == 2
    assert found["evaluation"]["paths"]["2D to 3D"]["frame_mean"]["MPJPE"] > 0
    assert found["deviations"]["model.image_encoder"] == ["none", "hrnet_w32"]
    assert "secret" not in kept.read_text()
    assert steps.read_text().splitlines()[0] == "stage,step,seconds,loss,decoding_3d,learning_rate"
    assert [line.split(",")[:4] for line in steps.read_text().splitlines()[1:]] == [
        [stage, str(step), f"{6 * step}", "0.333333"] for stage, step in stages[:3]
    ]
    assert read_run("other", folder) is None
    assert "noise_loss" not in found
    save_model(UniHPE(config.model, config.sampler), config, checkpoint / "last.safetensors")
    keep_run(run, "quick", motion, folder, sampler_steps=1)
    # an untrained network states about nothing: half of 51 coordinates
    assert read_run("quick", folder)["noise_loss"]["mean"] == pytest.approx(51 / 2, rel=0.2)
    assert read_run("quick", folder)["deviations"]["sampler.steps"] == [1, 1000]


@pytest.mark.parametrize("study", RATES)
def test_learning_rates_are_ordered_as_numbers(study):
    """The page names rows that chose the first or the last."""
    assert list(RATES[study]) == sorted(RATES[study], key=float)

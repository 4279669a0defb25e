"""The command line: help, exit codes, messages without tracebacks, and a run from end to end."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from unihpe_ref.__main__ import main
from unihpe_ref.applications.commands import results_table
from unihpe_ref.evaluation import UNITS, Evaluation, PathResult

TINY = [
    "--preset",
    "demo",
    "--data.image-size",
    "32",
    "32",
    "--data.subjects",
    "3",
    "--data.seconds",
    "1.0",
    "--model.encoder-width",
    "16",
    "--model.encoder-layers",
    "1",
    "--model.decoder-width",
    "32",
    "--sampler.steps",
    "2",
    "--stage1.steps",
    "2",
    "--stage1.batch-size",
    "6",
    "--stage2.steps",
    "2",
    "--stage2.batch-size",
    "6",
    "--stage3.steps",
    "2",
    "--stage3.batch-size",
    "6",
    "--evaluation.stride",
    "20",
]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["demo", "--help"], ["train", "-h"], ["evaluate", "--help"]])
def test_help_succeeds_and_names_the_commands(arguments, capsys):
    assert main(arguments) == 0
    assert "usage: unihpe" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean `unihpe train`?"),
        (["train", "--preset", "lifing"], "Did you mean 'lifting'?"),
        (["train", "--motion", "missing.npz"], "missing.npz"),
        (["train", "--device", "tpu"], "`--device` needs to be auto, cpu, cuda or cuda:N; got 'tpu'"),
        (["train", "--threads", "0"], "`--threads` needs to be at least 1; got 0"),
        (["evaluate", "missing.safetensors"], "needs to be a checkpoint; got no such file"),
        (["train", "--stage1.step", "3"], "stage1.step"),
        (["train", "--stage1.steps", "many"], "stage1.steps"),
    ],
)
def test_errors_are_printed_without_a_traceback(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err + captured.out
    assert "Traceback" not in captured.err + captured.out


def test_a_dry_run_prints_the_settings_and_leaves_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--dry-run", "--seed", "7"]) == 0
    out = capsys.readouterr().out
    settings = json.loads(out[: out.rindex("}") + 1])
    assert settings["seed"] == 7
    assert settings["preset"] == "demo"
    assert settings["stage3"]["temperature"] == 0.2
    assert not list(tmp_path.iterdir())


def test_train_then_evaluate(capsys, tmp_path, monkeypatch):
    """Three stages on generated pictures; the evaluation of the checkpoint repeats the numbers of the run."""
    monkeypatch.setenv("COLUMNS", "160")
    folder = tmp_path / "run"
    assert main(["train", "--out", str(folder), *TINY]) == 0
    out = capsys.readouterr().out
    for name in ("poses.png", "evaluation.json", "log.jsonl", "config.json", "model.safetensors"):
        assert (folder / name).stat().st_size > 0
        assert name in out
    for path in ("mean pose, 3D", "2D to 3D", "image to 3D", "image to 2D"):
        assert path in out
    assert (folder / "poses.png").read_bytes().startswith(b"\x89PNG")
    assert main(["train", "--out", str(folder), *TINY]) == 2
    assert "a folder without a trained model" in capsys.readouterr().err
    again = tmp_path / "again"
    assert main(["evaluate", str(folder), "--out", str(again)]) == 0
    assert json.loads((again / "evaluation.json").read_text()) == json.loads((folder / "evaluation.json").read_text())


def test_interruption_and_failure_have_exit_codes_of_their_own(capsys, monkeypatch):
    from unihpe_ref.applications import commands

    for error, code in ((KeyboardInterrupt(), 130), (FloatingPointError("loss"), 1), (OSError("disk"), 2)):

        def fail(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr(commands, "run_folder", fail)
        assert main(["demo"]) == code
        assert "Traceback" not in capsys.readouterr().err


def test_evaluation_on_a_data_set_follows_its_protocol(capsys, tmp_path, monkeypatch):
    """The shipped lifter on synthetic files in the format of VideoPose3D."""
    from formats import write_videopose3d

    import unihpe_ref

    monkeypatch.setenv("COLUMNS", "160")
    write_videopose3d(tmp_path / "VideoPose3D" / "data")
    shipped = str(Path(unihpe_ref.__file__).parent / "assets" / "lifter.safetensors")
    asked = ["evaluate", shipped, "--motion", str(tmp_path / "VideoPose3D" / "data"), "--protocol"]
    results = {}
    for name in ("h36m_lifting", "h36m_p1_image"):
        assert main([*asked, name, "--out", str(tmp_path / name)]) == 0
        results[name] = json.loads((tmp_path / name / "evaluation.json").read_text())
    assert "2D to 3D, flip" in capsys.readouterr().out
    lifting, image = (results[name]["paths"]["2D to 3D"]["frame_mean"] for name in results)
    assert set(lifting) == {"MPJPE", "PA-MPJPE", "PA-MPJPE-14"}
    assert set(image) == {"MPJPE", "PA-MPJPE"}  # of its 14 joints
    assert not results["h36m_lifting"]["retrieval"]  # the shipped lifter has no 3D encoder


def test_noise_in_the_joints_costs_the_more_the_larger_it_is(tmp_path):
    from formats import write_videopose3d

    import unihpe_ref

    write_videopose3d(tmp_path / "VideoPose3D" / "data")
    shipped = str(Path(unihpe_ref.__file__).parent / "assets" / "lifter.safetensors")
    asked = ["evaluate", shipped, "--motion", str(tmp_path / "VideoPose3D" / "data"), "--out", str(tmp_path / "out")]
    errors = []
    for share in ("0", "0.01", "0.03"):
        assert main([*asked, "--joint-noise", share]) == 0
        evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        errors.append(evaluation["paths"]["2D to 3D"]["frame_mean"]["PA-MPJPE"])
    assert errors == sorted(errors)
    assert errors[2] > errors[0] + 10  # millimetres
    assert main([*asked, "--joint-noise", "-1"]) == 2


def test_an_ablation_runs_the_rows_of_a_table_once(capsys, tmp_path, monkeypatch):
    """Table 4 at its smallest; a second call passes over all four rows, a changed one is refused."""
    monkeypatch.setenv("COLUMNS", "200")
    small = {
        "model.image_encoder": "none", "model.encoder_width": 16, "model.encoder_layers": 1,
        "model.encoder_heads": 2, "model.encoder_feedforward": 16, "model.embedding_dim": 32, "model.mlp_width": 16,
        "model.mlp_blocks": 1, "model.decoder_width": 32, "sampler.steps": 2, "data.subjects": 3, "data.seconds": 1.0,
        "stage1.steps": 1, "stage1.batch_size": 6, "stage3.steps": 1, "stage3.batch_size": 6, "evaluation.stride": 20,
    }  # fmt: skip
    asked = ["ablate", "--table", "4", "--out", str(tmp_path), "--set", *(f"{k}={v}" for k, v in small.items())]
    assert main([*asked, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("to be run") == 4
    assert main(asked) == 0
    table = (tmp_path / "ablation.md").read_text()
    assert table.count(" / ") == 8  # two metrics of four rows
    capsys.readouterr()
    assert main(asked) == 0
    assert capsys.readouterr().out.count("done") == 4
    assert main([*asked, "stage3.clip=2"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main(["ablate", "--table", "4", "--set", "stage3.steps"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err
    assert main(["ablate", "--table", "4", "--also", str(tmp_path)]) == 2
    assert "rows of two data sets" in capsys.readouterr().err


def test_rows_of_an_ablation_get_their_data_and_their_weights(tmp_path, monkeypatch):
    """The last row of Table 6 adds a data set to the row before; each image encoder of Table 5 has its own start."""
    from unihpe_ref.applications import ablation

    def planned(table, **options):
        """The settings of every row, none of which is run."""
        found = {}
        monkeypatch.setattr(ablation, "run", lambda config, folder, *_, **__: found.update({folder.name: config}))
        quiet = Console(file=io.StringIO())
        ablation.Ablate(table=table, out=tmp_path / "out", device="cpu", **options).execute(quiet)
        return found

    h36m, more = tmp_path / "h36m", tmp_path / "3dhp"
    six = planned("6", motion=h36m, also=more)
    last, before = (six[f"table6-pairs-triplet-token{of}-0"] for of in ("-3dhp", ""))
    assert last.override(preset=before.preset).differences(before) == {"also": (str(more), None)}
    five = planned("5", also=more, image_weights=("hrnet_w32=a.pth", "vit_s=b.pth"))
    weights = [str(five[f"table5-{name}-0"].image_weights) for name in ("hrnet-w32", "hrnet-w48", "vit-s")]
    assert weights == ["a.pth", "None", "b.pth"]
    assert all(config.also == more for config in five.values())
    with pytest.raises(ValueError, match=r"needs `ENCODER` to be one of .* Did you mean 'hrnet_w32'"):
        planned("5", image_weights=("hrnet_w23=a.pth",))


def test_table_6_without_a_second_data_set_leaves_its_last_row_out(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["ablate", "--table", "6", "--out", str(tmp_path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("to be run") == 4
    assert "table6-pairs-triplet-token-3dhp: left out, it needs a second data set" in out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_commands_and_options(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("unihpe", "lift", "evaluate", "--image-size", "--stage3.steps"):
        assert word in script
    assert main(["completion", "csh"]) == 2
    assert "needs a shell: bash, zsh; got csh" in capsys.readouterr().err


def test_the_table_of_results_keeps_the_paths_names_on_a_narrow_terminal():
    names = ("mean pose, 3D", "2D to 3D, flip", "image to 2D")
    paths = [PathResult(name, dict.fromkeys(UNITS, 201.6), dict.fromkeys(UNITS, 199.9), {}) for name in names]
    console = Console(width=80, file=io.StringIO())
    console.print(results_table(Evaluation(659, ["walking"], paths, {})))
    printed = console.file.getvalue()
    for text in (*names, "201.6", "199.9", *UNITS):
        assert text in printed
    assert "…" not in printed


def _recording_without_test_sequences(tmp_path):
    from formats import write_bvh

    write_bvh(tmp_path / "takes" / "walk.bvh", frames=200)  # one take: none is held out
    return tmp_path / "takes", "sequences of the split 'test'"


def _pictures_without_3d(tmp_path):
    from formats import write_coco

    write_coco(tmp_path / "coco", pictures=False)
    return tmp_path / "coco", "17 3D joints"


def _too_short(tmp_path):
    from formats import write_bvh

    for k in range(5):
        write_bvh(tmp_path / "takes" / f"walk{k}.bvh", frames=10)
    return tmp_path / "takes", "`sampler` needs samples 1 s apart; got sequences that are shorter"


@pytest.mark.parametrize("data", [_recording_without_test_sequences, _pictures_without_3d, _too_short])
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_what_cannot_be_trained_on_is_said_before_a_step_is_taken(data, options, tmp_path, capsys):
    path, words = data(tmp_path)
    small = ["--preset", "lifting", "--stage1.steps", "2", "--stage1.batch-size", "2", "--stage3.steps", "2"]
    out = tmp_path / "run"
    assert main(["train", *small, "--stage3.batch-size", "2", "--motion", str(path), "--out", str(out), *options]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()

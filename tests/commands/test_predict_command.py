import json
import pickle
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import assert_refused, brats, save_nifti

from brats_cli.core.compute.devices import describe
from brats_cli.core.data.labels import SCHEMES, noted_scheme
from brats_cli.core.data.phantom import write_phantoms
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.model import segmenter
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D
from brats_cli.core.model.windows import probabilities
from brats_cli.core.train.config import TrainConfig

IDS = [f"BraTS-GLI-{visit}" for visit in ("00000-000", "00000-001", "00001-000", "00002-000")]


def predict(*args, stdin=None):
    return brats("predict", *args, "--device", "cpu", stdin=stdin)


def done(*args, **options):
    result = predict(*args, **options)
    assert result.exit_code == 0, result.output
    return result


def written(folder):
    """What lies in a folder, besides the manifest."""
    return sorted(p.name for p in Path(folder).iterdir() if p.name != "predictions.jsonl")


def labels_of(path):
    return read_labels(Path(path)).data


def checkpoint(change, **augmentation):
    """A network of which all weights are 0 but for those that `change` sets."""
    config = TrainConfig(
        patch_size=16,
        precision="float32",
        network=UNetConfig(channels=1, levels=2, norm="none", residual=False),
        augmentation=augmentation,
    )
    net = UNet3D(config.network, in_channels=4, out_channels=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        change(net)
    return Checkpoint(net.state_dict(), config.model_dump(mode="json"), "brats2023", 1, {})


def core_everywhere(net):
    """Find tumour core, and nothing enhancing, in all that the network sees."""
    net.output.bias.copy_(torch.logit(torch.tensor([0.9, 0.8, 0.1])))


def edema_where_flair_is_bright(net):
    """Find whole tumour where the z-score of FLAIR is above 0.5: the way of the skip connection."""
    net.down[0][0].weight[0, 3, 1, 1, 1] = 1
    for convolution in (net.down[0][2], net.merge[0][0], net.merge[0][2]):
        convolution.weight[0, 0, 1, 1, 1] = 1
    net.output.weight[0] = 2
    net.output.bias.copy_(torch.tensor([-1.0, -1, -1]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "data"
    write_phantoms(folder, cases=4, shape=(32, 34, 36))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, data):
    """A working folder with a link to the data and two runs, the newest of which finds core."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(data)
    checkpoint(core_everywhere).save(tmp_path / "runs" / "a" / "best.pt")
    checkpoint(edema_where_flair_is_bright).save(tmp_path / "runs" / "bright" / "best.pt")
    (tmp_path / "runs" / "latest").write_text("a\n")
    return tmp_path


# --- one case ----------------------------------------------------------------------------------


def test_the_missions_line_writes_the_label_map_of_the_newest_run(here):
    result = done(f"data/{IDS[0]}", "-o", "seg.nii.gz")
    labels = labels_of("seg.nii.gz")
    assert set(np.unique(labels)) == {0, 1}
    # Voxels of 1 mm3, all core: in millilitres a thousandth of their number.
    ml = f"{(labels == 1).sum() / 1000:.2f}"
    header, row = result.stdout.splitlines()
    assert header.split() == ["file", "WT", "ml", "TC", "ml", "ET", "ml", "review", "seconds"]
    assert row.split()[:4] == ["seg.nii.gz", ml, ml, "0.00"]
    assert result.stderr.splitlines() == [
        f"model runs/a/best.pt on {describe(torch.device('cpu'))}",
        f"see it: brats view data/{IDS[0]} --seg seg.nii.gz -o view.html",
    ]
    assert written(here) == ["data", "runs", "seg.nii.gz"]


def test_the_label_map_lies_on_the_cases_grid_and_names_its_scheme(here):
    done(f"data/{IDS[0]}", "-o", "seg.nii.gz")
    seg, scan = nib.load("seg.nii.gz"), nib.load(f"data/{IDS[0]}/{IDS[0]}-t1n.nii.gz")
    assert seg.shape == scan.shape
    assert seg.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(seg.affine, scan.affine)
    assert noted_scheme(read_labels(Path("seg.nii.gz")).note) is SCHEMES["brats2023"]


def test_without_output_the_case_names_the_file(here):
    done(f"data/{IDS[0]}")
    assert f"{IDS[0]}.nii.gz" in written(here)


def test_a_folder_for_one_case_holds_the_cases_file(here):
    done(f"data/{IDS[0]}", "-o", "predictions")
    assert written("predictions") == [f"{IDS[0]}.nii.gz"]


def test_what_the_network_finds_lies_where_it_was_found(here):
    done(f"data/{IDS[0]}", "-o", "seg.nii.gz", "--model", "runs/bright")
    flair = np.asarray(nib.load(f"data/{IDS[0]}/{IDS[0]}-t2f.nii.gz").dataobj).astype(float)
    inside = np.minimum(flair, np.percentile(flair[flair > 0], 99.5))[flair > 0]
    bright = flair > inside.mean() + 0.5 * inside.std()
    np.testing.assert_array_equal(labels_of("seg.nii.gz"), 2 * bright)


def test_any_modality_file_stands_for_its_case(here):
    for path, output in [("", "a.nii.gz"), (f"{IDS[0]}-t2w.nii.gz", "b.nii.gz")]:
        done(Path("data", IDS[0], path), "-o", output, "--model", "runs/bright")
    np.testing.assert_array_equal(labels_of("a.nii.gz"), labels_of("b.nii.gz"))


def test_a_4d_file_is_in_the_decathlons_order(here):
    names = (f"data/{IDS[0]}/{IDS[0]}-{suffix}.nii.gz" for suffix in ("t2f", "t1n", "t1c", "t2w"))
    flair, *others = (nib.load(name) for name in names)
    channels = np.stack([np.asarray(image.dataobj) for image in (flair, *others)], axis=-1)
    save_nifti(Path("BRATS_001.nii.gz"), channels, flair.affine)
    done("BRATS_001.nii.gz", "-o", "from_4d.nii.gz", "--model", "runs/bright")
    done(f"data/{IDS[0]}", "-o", "from_folder.nii.gz", "--model", "runs/bright")
    expected = labels_of("from_folder.nii.gz")
    assert expected.any()
    np.testing.assert_array_equal(labels_of("from_4d.nii.gz"), expected)


@pytest.mark.parametrize(("scheme", "core"), [("brats2020", 1), ("msd", 2), ("brats2024-ped", 2)])
def test_labels_are_written_in_the_scheme_asked_for(here, scheme, core):
    done(f"data/{IDS[0]}", "-o", "seg.nii.gz", "--labels", scheme)
    assert set(np.unique(labels_of("seg.nii.gz"))) == {0, core}
    assert noted_scheme(read_labels(Path("seg.nii.gz")).note) is SCHEMES[scheme]


def test_json_says_what_was_written(here):
    result = done(f"data/{IDS[0]}", "-o", "seg.nii.gz", "--json")
    content = json.loads(result.stdout)
    core = int((labels_of("seg.nii.gz") == 1).sum())
    (case,) = content.pop("cases")
    assert content == {"format": "brats-predictions/1", "models": ["runs/a/best.pt"]}
    assert case["seconds"] > case["network_seconds"] > 0
    assert {name: case[name] for name in ("case", "file", "labels", "volumes_mm3", "missing")} == {
        "case": IDS[0],
        "file": "seg.nii.gz",
        "labels": "brats2023",
        "volumes_mm3": {"WT": core, "TC": core, "ET": 0},
        "missing": [],
    }
    # The manifest is a folder's, and here the file was named.
    assert not Path("predictions.jsonl").exists()


def test_a_run_a_checkpoint_and_the_newest_run_are_one_model(here):
    for options in (["--model", "runs/a"], ["--model", "runs/a/best.pt"], []):
        result = done(f"data/{IDS[0]}", "-o", "seg.nii.gz", "--overwrite", *options)
        assert result.stderr.startswith("model runs/a/best.pt on cpu")


# --- several cases -----------------------------------------------------------------------------


def test_a_data_set_goes_into_a_folder(here):
    result = done("data", "-o", "predictions")
    assert written("predictions") == [f"{case_id}.nii.gz" for case_id in IDS]
    assert len(result.stdout.splitlines()) == 1 + 4


def test_paths_come_from_standard_input(here):
    done("-", "-o", "out", stdin=f"data/{IDS[3]}\n\n  data/{IDS[1]}\n data/{IDS[3]}\n")
    assert written("out") == [f"{IDS[1]}.nii.gz", f"{IDS[3]}.nii.gz"]


def test_standard_input_without_paths(here):
    result = predict("-", "-o", "out", stdin="\n")
    assert_refused(result, "standard input is empty")


def test_a_case_given_twice_is_segmented_once(here):
    result = done(f"data/{IDS[0]}", f"data/{IDS[0]}/{IDS[0]}-t1n.nii.gz", "-o", "out")
    assert len(result.stdout.splitlines()) == 1 + 1


def test_several_cases_do_not_go_into_one_file(here):
    assert_refused(
        predict("data", "-o", "seg.nii.gz"),
        "4 cases cannot be written to one file, seg.nii.gz",
        "give a folder with -o",
    )
    assert not Path("seg.nii.gz").exists()


def test_existing_outputs_are_skipped_when_asked(here):
    done(f"data/{IDS[1]}", "-o", "out")
    before = Path("out", f"{IDS[1]}.nii.gz").stat().st_mtime_ns
    result = done("data", "-o", "out", "--skip-existing")
    assert "skipped 1 of 4 cases: their outputs exist" in result.stderr.splitlines()
    assert len(result.stdout.splitlines()) == 1 + 3
    assert written("out") == [f"{case_id}.nii.gz" for case_id in IDS]
    assert Path("out", f"{IDS[1]}.nii.gz").stat().st_mtime_ns == before


def test_when_all_outputs_exist_nothing_is_left_to_do(here):
    done("data", "-o", "out")
    result = done("data", "-o", "out", "--skip-existing")
    assert result.stdout == ""
    assert "skipped 4 of 4 cases: their outputs exist" in result.stderr.splitlines()
    assert json.loads(done("data", "-o", "out", "--skip-existing", "--json").stdout)["cases"] == []


def test_an_existing_output_stops_the_batch_before_it_begins(here):
    done(f"data/{IDS[3]}", "-o", "out")
    before = Path("out", f"{IDS[3]}.nii.gz").stat().st_mtime_ns
    result = predict("data", "-o", "out")
    assert_refused(result, f"out/{IDS[3]}.nii.gz exists already", "--overwrite")
    assert written("out") == [f"{IDS[3]}.nii.gz"]
    done("data", "-o", "out", "--overwrite")
    assert len(written("out")) == 4
    assert Path("out", f"{IDS[3]}.nii.gz").stat().st_mtime_ns > before


@pytest.fixture
def broken(here, data):
    """A copy of the data in which one case is cut short and one lacks FLAIR."""
    Path("data").unlink()
    shutil.copytree(data, "data")
    path = Path("data", IDS[1], f"{IDS[1]}-t1c.nii.gz")
    path.write_bytes(path.read_bytes()[:2000])
    Path("data", IDS[2], f"{IDS[2]}-t2f.nii.gz").unlink()
    return path


def test_bad_cases_do_not_stop_the_others(broken):
    result = predict("data", "-o", "out")
    assert result.exit_code == 3
    assert written("out") == [f"{IDS[0]}.nii.gz", f"{IDS[3]}.nii.gz"]
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "file",
        f"out/{IDS[0]}.nii.gz",
        f"out/{IDS[3]}.nii.gz",
    ]
    lines = result.stderr.splitlines()[1:]
    assert [line for line in lines if line.startswith("error:")] == [
        f"error: cannot read {broken}: it is cut short",
        f"error: case {IDS[2]} has no flair (found: t1, t1ce, t2)",
        "error: 2 of 4 cases failed",
    ]
    assert lines[-1] == " hint: their errors are listed above; all others are done"


def test_json_of_a_batch_with_bad_cases_holds_the_good_ones(broken):
    result = predict("data", "-o", "out", "--json")
    assert result.exit_code == 3
    assert [case["case"] for case in json.loads(result.stdout)["cases"]] == [IDS[0], IDS[3]]


def test_one_bad_case_alone_is_one_error(broken):
    result = predict(f"data/{IDS[1]}", "-o", "seg.nii.gz")
    assert result.exit_code == 3
    assert result.stdout == ""
    model, error, hint = result.stderr.splitlines()
    assert model.startswith("model runs/a/best.pt")
    assert error == f"error: cannot read {broken}: it is cut short"
    assert hint.startswith(" hint: ")
    assert not Path("seg.nii.gz").exists()


def test_a_bad_path_does_not_stop_the_others(here):
    result = predict("nowhere", f"data/{IDS[0]}", "-o", "out")
    assert result.exit_code == 3
    assert written("out") == [f"{IDS[0]}.nii.gz"]
    assert "error: cannot read nowhere: there is no such file" in result.stderr
    assert "error: 1 of 2 cases failed" in result.stderr


def test_a_batch_leaves_a_manifest(here):
    told = json.loads(done("data", "-o", "out", "--json").stdout)
    lines = [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    assert lines == told["cases"]
    assert [line["case"] for line in lines] == IDS


# --- more than labels --------------------------------------------------------------------------


def test_probabilities_and_uncertainty_lie_beside_the_label_map(here):
    done(f"data/{IDS[0]}", "-o", "out", "--probabilities", "--uncertainty")
    inside = labels_of(f"out/{IDS[0]}.nii.gz") == 1
    probabilities = nib.load(f"out/{IDS[0]}_probabilities.nii.gz")
    assert probabilities.get_fdata()[inside][0] == pytest.approx([0.9, 0.8, 0.1], abs=1e-4)
    # Entropies in bits: H(0.9) = H(0.1) = 0.469, H(0.8) = 0.722.
    uncertainty = nib.load(f"out/{IDS[0]}_uncertainty.nii.gz")
    assert np.asarray(uncertainty.dataobj)[inside][0].tolist() == [47, 72, 47]


def test_uncertainty_is_written_as_brats_2020_asked_for_it(here):
    done(f"data/{IDS[0]}", "-o", "out", "--uncertainty-format", "brats")
    inside = labels_of(f"out/{IDS[0]}.nii.gz") == 1
    for name, expected in (("whole", 47), ("core", 72), ("enhance", 47)):
        image = nib.load(f"out/{IDS[0]}_unc_{name}.nii.gz")
        assert image.shape == inside.shape
        assert np.asarray(image.dataobj)[inside][0] == expected
    assert len(written("out")) == 4
    # The folder of predictions still holds one label map, and all outputs are there.
    result = done(f"data/{IDS[0]}", "-o", "out", "--skip-existing", "--uncertainty-format", "brats")
    assert "outputs exist" in result.stderr


def test_an_unknown_uncertainty_format_is_refused(here):
    result = brats("predict", f"data/{IDS[0]}", "-o", "out", "--uncertainty-format", "5d")
    assert_refused(result, "there is no uncertainty format '5d'", "4d (one file")


def test_a_case_that_lacks_one_of_its_outputs_is_done_again(here):
    done(f"data/{IDS[0]}", "-o", "out")
    result = done(f"data/{IDS[0]}", "-o", "out", "--skip-existing", "--uncertainty")
    assert "outputs exist" not in result.stderr
    assert written("out") == [f"{IDS[0]}.nii.gz", f"{IDS[0]}_uncertainty.nii.gz"]


def test_several_models_are_averaged(here):
    # TC 0.8 and sigmoid(-1) = 0.27 make 0.53; WT 0.9 and at least 0.27 make 0.58.
    models = ["--model", "runs/a", "--model", "runs/bright/best.pt"]
    result = done(f"data/{IDS[0]}", "-o", "seg.nii.gz", *models)
    assert result.stderr.startswith("model runs/a/best.pt, runs/bright/best.pt on cpu")
    assert set(np.unique(labels_of("seg.nii.gz"))) == {0, 1}
    # 0.8 and twice 0.27 make 0.45.
    done(f"data/{IDS[0]}", "-o", "three.nii.gz", *models, "--model", "runs/bright")
    assert 1 not in labels_of("three.nii.gz")


def test_flips_of_a_pointwise_network_change_nothing(here):
    done(f"data/{IDS[0]}", "-o", "plain.nii.gz", "--model", "runs/bright")
    done(f"data/{IDS[0]}", "-o", "flips.nii.gz", "--model", "runs/bright", "--tta")
    np.testing.assert_array_equal(labels_of("flips.nii.gz"), labels_of("plain.nii.gz"))


def test_how_far_windows_overlap_is_the_networks_choice_unless_it_is_asked_for(here, monkeypatch):
    overlaps = []

    def watched(*arguments, overlap, **options):
        overlaps.append(overlap)
        return probabilities(*arguments, overlap=overlap, **options)

    monkeypatch.setattr(segmenter, "probabilities", watched)
    words = (f"data/{IDS[0]}", "-o", "seg.nii.gz", "--model", "runs/bright", "--overwrite")
    done(*words)
    done(*words, "--overlap", "0.5")
    assert overlaps == [None, 0.5]


# --- missing sequences -------------------------------------------------------------------------


def test_a_missing_sequence_names_the_flag_that_goes_on_without(broken):
    words = [f"data/{IDS[2]}", "-o", "out"]
    assert "--allow-missing" in predict(*words).stderr
    result = done(*words, "--allow-missing", "--json")
    assert f"{IDS[2]}: segmented without flair" in result.stderr.splitlines()
    (row,) = json.loads(result.stdout)["cases"]
    assert (row["modalities"], row["missing"]) == (["t1", "t1ce", "t2"], ["flair"])


def test_a_model_that_saw_missing_sequences_needs_no_flag(broken):
    checkpoint(core_everywhere, modality_dropout=0.2).save(Path("runs/able.pt"))
    result = done(f"data/{IDS[2]}", "-o", "out", "--model", "runs/able.pt")
    assert f"{IDS[2]}: segmented without flair" in result.stderr.splitlines()


# --- what is refused ---------------------------------------------------------------------------


def test_without_a_trained_model(here):
    shutil.rmtree("runs")
    assert_refused(
        predict(f"data/{IDS[0]}", "-o", "seg.nii.gz"),
        f"there is no trained model in {here / 'runs'}",
        "train one with `brats train --epochs 100`, or name one with --model",
    )


def test_a_model_that_is_not_there(here):
    assert_refused(
        predict(f"data/{IDS[0]}", "-o", "seg.nii.gz", "--model", "runs/b"),
        "there is no best.pt in runs/b",
        "--model",
    )


def test_a_model_that_is_a_runs_log(here):
    Path("runs/a/log.csv").write_text("epoch,loss\n1,0.5\n")
    assert_refused(
        predict(f"data/{IDS[0]}", "-o", "seg.nii.gz", "--model", "runs/a/log.csv"),
        "runs/a/log.csv is not a brats checkpoint",
        "give best.pt or last.pt of a run",
    )


class Malicious:
    """Unpickled carelessly, it makes a file."""

    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


@pytest.mark.parametrize("kind", ["pickle", "archive"])
def test_a_model_with_code_in_it_is_refused_and_the_code_does_not_run(here, kind):
    code = pickle.dumps({"format": "brats-checkpoint/1", "weights": Malicious()}, protocol=2)
    bad = Path("runs/a/best.pt")
    bad.write_bytes(code)
    if kind == "archive":  # as torch.save writes it
        with zipfile.ZipFile(bad, "w") as archive:
            archive.writestr("best/data.pkl", code)
            archive.writestr("best/version", "3\n")
            archive.writestr("best/byteorder", "little")
    result = predict("data", "-o", "out")
    assert_refused(result, "runs/a/best.pt is not a brats checkpoint", "give best.pt")
    assert written(here) == ["data", "runs"]


@pytest.mark.parametrize("overlap", ["1", "-0.1"])
def test_impossible_windows_are_wrong_usage(here, overlap):
    assert predict("data", "-o", "out", "--overlap", overlap).exit_code == 2


@pytest.mark.parametrize("gpu", ["0,0", "one", "-1"])
def test_gpus_are_numbers(here, gpu):
    assert_refused(
        predict("data", "-o", "out", "--gpu", gpu),
        f"--gpu {gpu} does not number GPUs",
        "write --gpu 0, or --gpu 0,1 for several",
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU 0")
def test_a_gpu_that_is_not_there(here):
    result = brats("predict", f"data/{IDS[0]}", "-o", "s.nii.gz", "--gpu", "0")
    assert_refused(result, "this machine has no GPU 0 (CUDA devices found: 0)", "use --device cpu")
    assert not Path("s.nii.gz").exists()


def test_a_case_that_is_not_there(here):
    result = predict("data/nowhere.nii.gz", "-o", "seg.nii.gz")
    assert_refused(
        result, "cannot read data/nowhere.nii.gz: there is no such file", "check the path"
    )


def test_a_folder_without_cases(here):
    Path("empty").mkdir()
    assert_refused(predict("empty", "-o", "seg.nii.gz"), "no cases in empty")


def test_a_scheme_that_is_not_there(here):
    result = predict(f"data/{IDS[0]}", "-o", "seg.nii.gz", "--labels", "brats2019")
    assert_refused(result, "there is no label scheme 'brats2019'", "brats2020")


def test_a_scheme_without_the_regions_found(here):
    result = predict(f"data/{IDS[0]}", "-o", "seg.nii.gz", "--labels", "men-rt")
    assert_refused(result, "label scheme men-rt has no region WT", "its regions are")


def test_an_output_in_a_place_that_cannot_be(here):
    Path("file").write_text("")
    result = predict(f"data/{IDS[0]}", "-o", "file/seg.nii.gz")
    assert_refused(result, "cannot write file/seg.nii.gz: file is not a folder")


def test_help_shows_an_example():
    result = brats("predict", "--help")
    assert "Example: brats predict data/BraTS2021_00006 -o seg.nii.gz" in result.stdout

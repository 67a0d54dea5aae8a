"""Networks in the files of others, made by the peers' own classes and savers, and their inference.

MONAI and nnU-Net are no dependencies of brats: tests that need one skip without it.
"""

import contextlib
import functools
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

CLASS_LABELS = {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumor": 3}
REGION_LABELS = {
    "background": 0,
    "whole tumor": [1, 2, 3],
    "tumor core": [2, 3],
    "enhancing tumor": [3],
}


def decided(network, *, seed=0):
    """A network whose random outputs reach from certain to certain, as those of a trained one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim == 5:
                fan = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan) ** 0.5)
            elif "seg_layers" in name or "head" in name or "conv_final.2" in name:
                value.copy_(torch.randn(value.shape, generator=generator))
    return network.eval()


# --- MONAI's bundle ----------------------------------------------------------------------------

BUNDLE_CHANNELS = {"0": "T1c", "1": "T1", "2": "T2", "3": "FLAIR"}


def save_bundle(folder, *, window=(240, 240, 160), options=None):
    """The bundle's folder as the model zoo has it, with a random network; and the network."""
    nets = pytest.importorskip("monai.networks.nets")
    options = options or {"blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1), "init_filters": 16}
    torch.manual_seed(0)
    network = decided(nets.SegResNet(in_channels=4, out_channels=3, dropout_prob=0.2, **options))
    for part in ("models", "configs", "docs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "models/model.pt")
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    inputs = {"type": "image", "num_channels": 4, "channel_def": BUNDLE_CHANNELS}
    outputs = {"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"}
    metadata = {
        "version": "0.5.2",
        "name": "BraTS MRI segmentation",
        "task": "Multimodal Brain Tumor segmentation",
        "network_data_format": {
            "inputs": {"image": inputs},
            "outputs": {"pred": {"type": "image", "num_channels": 3, "channel_def": outputs}},
        },
    }
    (folder / "configs/metadata.json").write_text(json.dumps(metadata))
    normalise = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True}
    inference = {
        "device": "$__import__('os').abort()",  # never evaluated
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {**normalise, "channel_wise": True},
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(window),
            "sw_batch_size": 1,
            "overlap": 0.5,
        },
    }
    (folder / "configs/inference.json").write_text(json.dumps(inference))
    return network


def bundle_probabilities(network, files, window):
    """Probabilities of TC, WT and ET, and the label map, by MONAI's own transforms and windows.

    Args:
        network: As `save_bundle` makes it.
        files: T1c, T1, T2 and FLAIR.
        window: The windows' size.
    """
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import Compose, LoadImaged, NormalizeIntensityd

    transform = Compose(
        [
            LoadImaged(keys="image"),
            NormalizeIntensityd(keys="image", nonzero=True, channel_wise=True),
        ]
    )
    image = transform({"image": [str(file) for file in files]})["image"]
    inferer = SlidingWindowInferer(roi_size=window, sw_batch_size=1, overlap=0.5)
    with torch.no_grad():
        found = torch.sigmoid(inferer(image[None].as_tensor(), network))[0].numpy()
    core, whole, enhancing = found > 0.5
    return found, np.where(enhancing, 4, np.where(core, 1, np.where(whole, 2, 0)))


# --- Auto3DSeg ---------------------------------------------------------------------------------


def save_auto3dseg(path, *, roi=(224, 224, 144), **changes):
    """A checkpoint as Auto3DSeg's segresnet saves it, with a random network; and the network."""
    nets = pytest.importorskip("monai.networks.nets")
    network_config = {
        "_target_": "SegResNetDS",
        "init_filters": 8,
        "blocks_down": [1, 2, 2],
        "norm": "INSTANCE_NVFUSER",
        "in_channels": 4,
        "out_channels": 3,
        "dsdepth": 2,
    }
    config = {
        "network": network_config,
        "class_names": ["wt", "tc", "et"],
        "class_index": [[1, 2, 3], [1, 3], [3]],
        "sigmoid": True,
        "roi_size": list(roi),
        "crop_foreground": True,
        "orientation_ras": True,
        "resample": False,
        "resample_resolution": [1.0, 1.0, 1.0],
        "normalize_mode": "meanstd",
        "extra_modalities": {},
        "intensity_bounds": None,
        **changes,
    }
    settings = {key: value for key, value in network_config.items() if key != "_target_"}
    torch.manual_seed(0)
    network = decided(nets.SegResNetDS(**{**settings, "norm": "INSTANCE"}))
    content = {"state_dict": network.state_dict(), "config": config, "epoch": 7}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**content, "best_metric": np.float64(0.9)}, path)
    return network


def auto3dseg_probabilities(network, files, roi):
    """Probabilities of WT, TC and ET on the grid of the files, by MONAI's transforms and windows.

    Args:
        network: As `save_auto3dseg` makes it.
        files: T2F, T1C, T1N and T2W.
        roi: The windows' size.
    """
    from monai.inferers import SlidingWindowInfererAdapt
    from monai.transforms import (
        Compose,
        CropForegroundd,
        EnsureTyped,
        Invertd,
        LoadImaged,
        NormalizeIntensityd,
        Orientationd,
    )

    transform = Compose(
        [
            LoadImaged(keys=["image"], ensure_channel_first=True, dtype=None),
            EnsureTyped(keys=["image"], data_type="tensor", dtype=torch.float),
            Orientationd(keys=["image"], axcodes="RAS"),
            CropForegroundd(keys=["image"], source_key="image", margin=10, allow_smaller=True),
            NormalizeIntensityd(keys="image", nonzero=True, channel_wise=True),
        ]
    )
    case = transform({"image": [str(file) for file in files]})
    inferer = SlidingWindowInfererAdapt(
        roi_size=roi, sw_batch_size=1, overlap=0.625, mode="gaussian", cache_roi_weight_map=True
    )
    with torch.no_grad():
        case["pred"] = torch.sigmoid(inferer(case["image"][None], network))[0]
    back = Invertd(keys="pred", orig_keys="image", transform=transform, nearest_interp=False)
    return np.asarray(back(case)["pred"])


# --- nnU-Net -----------------------------------------------------------------------------------


def nnunet_plans(patch, *, residual=False, transpose=(0, 1, 2)):
    """Plans as nnU-Net's planner writes them, of a small network."""
    stages, strides = 3, [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
    kind = "unet.ResidualEncoderUNet" if residual else "unet.PlainConvUNet"
    blocks = {"n_blocks_per_stage": [1, 2, 2]} if residual else {"n_conv_per_stage": [2, 2, 2]}
    architecture = {
        "network_class_name": f"dynamic_network_architectures.architectures.{kind}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [6, 8, 12],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "strides": strides,
            **blocks,
            "n_conv_per_stage_decoder": [1, 1] if residual else [2, 2],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    fullres = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [140.0, 170.0, 137.0],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 4,
        "use_mask_for_norm": [True] * 4,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": architecture,
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset137_BraTS",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [140, 171, 137],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": [int(place) for place in np.argsort(transpose)],
        "configurations": {"3d_fullres": fullres},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(number): {} for number in range(4)},
    }


def nnunet_dataset(labels, channels=("T1", "T1ce", "T2", "Flair")):
    """The dataset.json of nnU-Net."""
    description = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": labels,
        "numTraining": 1251,
        "file_ending": ".nii.gz",
    }
    if any(isinstance(value, list) for value in labels.values()):
        description["regions_class_order"] = [1, 2, 3]
    return description


def save_nnunet(folder, plans, dataset, *, folds=(0,), seed=0):
    """A folder as nnU-Net's trainer leaves it, with random networks."""
    trainer_class = _trainer()
    for name, content in (("dataset.json", dataset), ("plans.json", plans)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    for fold in folds:
        given = {**plans, "continue_training": False}  # as nnUNetv2_train adds it
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = trainer_class(given, "3d_fullres", fold, dataset, torch.device("cpu"))
        # The trainer looks what its cases are stored as.
        cases = Path(trainer.preprocessed_dataset_folder)
        cases.mkdir(parents=True, exist_ok=True)
        (cases / "case.b2nd").touch()
        trainer.initialize()
        decided(trainer.network, seed=seed + fold)
        trainer.logger.log("mean_fg_dice", 0.5, 0)
        trainer._best_ema = np.float64(0.5)  # as NumPy's mean makes it
        trainer.current_epoch = 999
        trainer.inference_allowed_mirroring_axes = (0, 1, 2)  # as the start of training sets it
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        trainer.save_checkpoint(str(folder / f"fold_{fold}/checkpoint_final.pth"))


_PLACE = Path(tempfile.gettempdir()) / f"brats-nnunet-{os.getpid()}"


def _trainer():
    for name in ("raw", "preprocessed", "results"):
        os.environ.setdefault(f"nnUNet_{name}", str(_PLACE / name))
    pytest.importorskip("nnunetv2")
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Quiet(nnUNetTrainer):
        """Writes no log beside the networks, and is saved under the name of its parent."""

        def print_to_log_file(self, *words, **more):
            pass

    Quiet.__name__ = "nnUNetTrainer"
    return Quiet


def nnunet_prediction(folder, files, *, mirroring=False, exactly=True):
    """Probabilities (R, X, Y, Z) and label map (X, Y, Z) by nnU-Net's own predictor.

    Args:
        folder: As `save_nnunet` makes it.
        files: One per channel.
        mirroring: Average over flips.
        exactly: Add windows up in float32. nnU-Net does in float16, where the least weights of its
            Gaussian have one or two digits: at a corner of the image, which a single window
            covers, its probabilities are then off by up to 0.2.
    """
    _trainer()
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        use_mirroring=mirroring,
        device=torch.device("cpu"),
        perform_everything_on_device=False,
        verbose=False,
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=(0,))
    images, properties = SimpleITKIO().read_images([str(file) for file in files])
    with _in_float32() if exactly else contextlib.nullcontext():
        labels, found = predictor.predict_single_npy_array(
            images, properties, None, None, save_or_return_probabilities=True
        )
    return found.transpose(0, 3, 2, 1), labels.transpose(2, 1, 0)


@contextlib.contextmanager
def _in_float32():
    from nnunetv2.inference import predict_from_raw_data as module

    gaussian = module.compute_gaussian
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "half", torch.float32)
        wide = functools.partial(gaussian, dtype=torch.float32)
        wide.cache_clear = gaussian.cache_clear
        patch.setattr(module, "compute_gaussian", wide)
        yield


def forget_nnunet():
    """Remove what nnU-Net's trainer writes beside."""
    shutil.rmtree(_PLACE, ignore_errors=True)

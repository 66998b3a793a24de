"""Predict the loss floor of a distilled language model from its teacher's sparse autoencoder.

    from tl_distill_floor import predict_floor
    floor = predict_floor(model, sae)          # HookedTransformer or TransformerBridge, and a SAELens SAE

Names are imported when they are first used, so that `import tl_distill_floor` loads neither torch nor TransformerLens.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_distill_floor.calibration import Calibration as Calibration
    from tl_distill_floor.errors import InputError as InputError
    from tl_distill_floor.measuring.features import measure as measure
    from tl_distill_floor.predict import predict_floor as predict_floor
    from tl_distill_floor.predict import predict_floors as predict_floors
    from tl_distill_floor.prediction import FloorPrediction as FloorPrediction
    from tl_distill_floor.probe_result import ProbeResult as ProbeResult
    from tl_distill_floor.probe_result import Probes as Probes
    from tl_distill_floor.records import Allocation as Allocation
    from tl_distill_floor.records import FeatureStats as FeatureStats
    from tl_distill_floor.sources.sae_directory import find_saes as find_saes
    from tl_distill_floor.sources.saes import load_sae as load_sae
    from tl_distill_floor.sources.teachers import load_teacher as load_teacher
    from tl_distill_floor.sources.text import load_text as load_text
    from tl_distill_floor.sources.train_sae import train_sae as train_sae
    from tl_distill_floor.student_plan import Plan as Plan
    from tl_distill_floor.student_result import StudentResult as StudentResult
    from tl_distill_floor.students.build import build_student as build_student
    from tl_distill_floor.students.calibrate import calibrate as calibrate
    from tl_distill_floor.students.distill import distill as distill
    from tl_distill_floor.students.distill import distill_students as distill_students
    from tl_distill_floor.students.plan import plan as plan
    from tl_distill_floor.students.probes import probe as probe
    from tl_distill_floor.students.survival import Probing as Probing
    from tl_distill_floor.students.survival import survival as survival
    from tl_distill_floor.students.training import Training as Training
    from tl_distill_floor.theory import toy as toy
    from tl_distill_floor.theory.allocation import allocate as allocate
    from tl_distill_floor.theory.allocation import independent_floor as independent_floor
    from tl_distill_floor.theory.capacity import capacity as capacity
    from tl_distill_floor.theory.capacity import critical_width as critical_width
    from tl_distill_floor.theory.floor import floor_from_stats as floor_from_stats
    from tl_distill_floor.theory.floor import theorem_floor as theorem_floor

__version__ = "0.1.0"
_HOME = {
    "Calibration": "calibration",
    "InputError": "errors",
    "measure": "measuring.features",
    "predict_floor": "predict",
    "predict_floors": "predict",
    "FloorPrediction": "prediction",
    "ProbeResult": "probe_result",
    "Probes": "probe_result",
    "Allocation": "records",
    "FeatureStats": "records",
    "find_saes": "sources.sae_directory",
    "load_sae": "sources.saes",
    "load_teacher": "sources.teachers",
    "load_text": "sources.text",
    "train_sae": "sources.train_sae",
    "Plan": "student_plan",
    "StudentResult": "student_result",
    "build_student": "students.build",
    "calibrate": "students.calibrate",
    "distill": "students.distill",
    "distill_students": "students.distill",
    "plan": "students.plan",
    "probe": "students.probes",
    "Probing": "students.survival",
    "survival": "students.survival",
    "Training": "students.training",
    "allocate": "theory.allocation",
    "independent_floor": "theory.allocation",
    "capacity": "theory.capacity",
    "critical_width": "theory.capacity",
    "floor_from_stats": "theory.floor",
    "theorem_floor": "theory.floor",
    "toy": "theory.toy",
}
_MODULES = {"toy"}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOME[name]}")
    return home if name in _MODULES else getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

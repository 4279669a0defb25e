"""The table of a paper: pose metrics per action, per subject and per joint, with both means named.

>>> from unihpe_ref.report import PoseReport
"""

from unihpe_ref.report import human36m
from unihpe_ref.report.numbers import Examples, MetricResult
from unihpe_ref.report.pose_report import PoseReport, PoseResult

__all__ = ["Examples", "MetricResult", "PoseReport", "PoseResult", "human36m"]

"""Op → axis equation, one file per family. An op without a rule pins its axes, and the report says so."""

from cipm.rules import contraction, norm, pointwise, reduce, reshape, select
from cipm.rules.labels import FREE, Axis, Fixed, Free, LabelBook, Value
from cipm.rules.registry import Call, Consumer, bind, find_rule, known_ops

FAMILIES = (contraction, norm, pointwise, reduce, reshape, select)

__all__ = ["FAMILIES", "FREE", "Axis", "Call", "Consumer", "Fixed", "Free", "LabelBook", "Value", "bind", "find_rule",
           "known_ops"]

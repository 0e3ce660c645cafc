"""Op → axis equation, one file per family. An op without a rule pins its axes, and the report says so."""

from cipm.rules import contraction, gather, norm, order, pointwise, recurrent, reduce, reshape, select, spatial, spectral
from cipm.rules.gather import gathers
from cipm.rules.labels import FREE, Axis, Coded, Fixed, Free, LabelBook, Value
from cipm.rules.order import RANKED
from cipm.rules.registry import Call, Consumer, bind, codes_of, find_rule, known_ops, moved_codes, pin_codes

FAMILIES = (contraction, recurrent, norm, pointwise, reduce, order, reshape, select, gather, spatial, spectral)

__all__ = ["FAMILIES", "FREE", "RANKED", "Axis", "Call", "Coded", "Consumer", "Fixed", "Free", "LabelBook", "Value", "bind",
           "codes_of", "find_rule", "gathers", "known_ops", "moved_codes", "pin_codes"]

"""View models, words, options and figures: pure functions, without Dash."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend import figures, options_form, words
from frontend import group_words as gw
from frontend import view_models as vm
from frontend.pages import group as panels


def group(name: str, parent: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"name": name, "kind": "units", "size": 8, "parent": parent, "proved": True, "unavailable": None, **fields}


# ---------------------------------------------------------------- the view of an address
def test_an_address_gives_a_view_whatever_it_says() -> None:
    assert vm.View.parse({"group": "fc1", "tab": "whatif", "matrix": "m0", "junk": "1"}) == vm.View("fc1", "whatif", "m0")
    assert vm.View.parse({"tab": "no such tab", "group": ""}) == vm.View(None, "correlation", None)
    assert vm.View.parse(None) == vm.View()


# ---------------------------------------------------------------- groups
def test_groups_are_a_tree_in_reading_order() -> None:
    report = {"groups": [group("units", "heads"), group("heads"), group("fc"), group("inner", "units"), group("lost", "gone")]}
    assert [(row.name, row.depth) for row in vm.group_rows(report)] == [
        ("heads", 0), ("units", 1), ("inner", 2), ("fc", 0), ("lost", 0)]


@given(st.lists(st.integers(0, 30), max_size=30))
def test_every_group_is_listed_once_unless_parents_form_a_ring(parents: list[int]) -> None:
    groups = [group(f"g{i}", f"g{parent}" if parent < i else None) for i, parent in enumerate(parents)]
    assert sorted(row.name for row in vm.group_rows({"groups": groups})) == sorted(made["name"] for made in groups)


def test_the_group_chosen_is_the_one_asked_for_or_the_first_that_has_results() -> None:
    report = {"groups": [group("dead", unavailable="No activations."), group("alive"), group("other")]}
    chosen = [vm.choose_group(report, asked) for asked in ("other", None, "unknown")]
    assert [made["name"] for made in chosen if made] == ["other", "alive", "alive"]
    assert vm.choose_group({"groups": []}, "x") is None


def test_matrices_of_one_kind_and_the_chosen_one() -> None:
    report = {"matrices": [{"id": "c", "kind": "correlation"}, {"id": "w0", "kind": "weight"}, {"id": "w1", "kind": "weight"}]}
    weights = vm.matrices_of(report, group("g", matrices=["w1", "c"]), "weight")
    assert [matrix["id"] for matrix in weights] == ["w1"]
    assert vm.choose_matrix(weights, "unknown") == weights[0] and vm.choose_matrix([], None) is None


def test_correlations_are_called_by_their_samples() -> None:
    matrices = [{"id": "c", "kind": "correlation", "title": "correlation of fc"},
                {"id": "c-within", "kind": "correlation", "class": "within", "samples": 1437},
                {"id": "c-3", "kind": "correlation", "class": "3", "samples": 1},
                {"id": "w", "kind": "weight", "title": "fc.weight"}]
    assert [vm.matrix_words(matrix) for matrix in matrices] == [
        "All rows", "Within classes \u00b7 1\u202f437 samples", "Class 3 \u00b7 1 sample", "fc.weight"]


def by_class() -> dict[str, Any]:
    classes = {"labels": [0, 2], "sizes": [30, 12], "selectivity": [0.1, 0.9, 0.5, 0.4], "preferred": [2, 2, 2, 2],
               "of": "rows", "samples": 42, "chance": 0.024}
    return group("fc", activity={"classes": classes, "classes_words": []}, matrices=["c", "c-2", "m"], orders={"modules": {}},
                 classes={"samples": {"2": 12}, "words": None})


def test_classes_list_their_clearest_units() -> None:
    clearest = "1 (0.90), 2 (0.50), 3 (0.40), 0 (0.10)"
    assert gw.class_rows(by_class()) == [gw.ClassRow(0, 30, 0, ""), gw.ClassRow(2, 12, 4, clearest)]
    notes = gw.class_notes(by_class())
    assert "over 42 labelled rows" in notes[0] and "50.0\u202f% of the variance" in notes[1]
    assert "chosen under Correlation" in notes[2]
    none = group("fc", activity={"classes": None, "classes_words": ["Labels are numbers."]})
    assert (gw.class_rows(none), gw.class_notes(none)) == ([], ["Labels are numbers."])
    assert gw.class_notes(group("fc")) == ["The probe data has no labels that name classes."]


@pytest.mark.parametrize("tab, asked, shown, said", [
    ("correlation", None, "c", ["Correlation"]),
    ("correlation", "c-2", "c-2", ["Correlation, Class 2", "All rows", "Class 2 \u00b7 12"]),
    ("classes", "c-2", "m", ["class means of fc", "1 (0.90)", "over 42 labelled rows"])])
def test_the_panel_shows_correlations_of_a_class_and_class_means(tab: str, asked: str | None, shown: str,
                                                                 said: list[str]) -> None:
    matrices = [{"id": "c", "kind": "correlation", "title": "correlation of fc"}, {"id": "m", "kind": "classes",
                "title": "class means of fc"}, {"id": "c-2", "kind": "correlation", "class": "2", "samples": 12}]
    page = {"id": "a1", "share": None, "read_only": True}
    panel = panels.panel({"groups": [by_class()], "matrices": matrices}, vm.View("fc", tab, asked), page, [])
    drawn = panel.to_plotly_json()
    assert f"/api/analyses/a1/matrices/{shown}'" in str(drawn) and all(text in str(drawn) for text in said)
    empty = panels.panel({"groups": [group("fc")]}, vm.View("fc", "classes", None), page, [])
    assert "The probe data has no labels" in str(empty.to_plotly_json())


def test_orders_begin_with_modules_and_leave_the_original_out() -> None:
    assert gw.order_names(group("g", orders={"random": {}, "original": {}, "own": {}, "modules": {}})) == [
        "modules", "random", "own"]


# ---------------------------------------------------------------- modules and scores
@given(st.sets(st.integers(0, 200), max_size=60))
def test_ranges_say_exactly_these_units(units: set[int]) -> None:
    said: set[int] = set()
    for part in filter(None, gw.compact_ranges(sorted(units)).split(", ")):
        low, _, high = part.partition("\u2013")
        said |= set(range(int(low), int(high or low) + 1))
    assert said == units


def test_modules_are_listed_largest_first() -> None:
    modules = [{"id": 0, "units": [1], "size": 1},
               {"id": 1, "units": [0, 2, 3], "size": 3, "coherence": 0.4, "stability": None}]
    rows = gw.module_rows(group("g", modules=modules))
    assert [(row.id, row.ranges, row.coherence) for row in rows] == [(1, "0, 2, 3", 0.4), (0, "1", None)]


def test_the_best_order_is_judged_on_held_out_rows_in_each_scores_own_sense() -> None:
    orders = {"modules": {"scores": {"path": 0.1, "block_contrast": 0.9}, "held_out": {"path": 0.5, "block_contrast": 0.2}},
              "spectral": {"scores": {"path": 0.4, "block_contrast": 0.1}, "held_out": {"path": 0.4, "block_contrast": 0.8}}}
    rows = gw.score_rows(group("g", orders=orders))
    assert [name for name, _ in rows] == ["modules", "spectral"]
    assert gw.best_scores(rows) == [None, "spectral", "spectral", None, None]


# ---------------------------------------------------------------- certificate and jobs
def test_a_certificate_in_words() -> None:
    good = vm.proof({"passed": True, "draws": 2, "max_rel": 2e-16, "max_abs": 1e-15, "negative_control": 0.25,
                     "dtype": "float64"})
    assert good.passed and good.badge == "Function preserved"
    assert "2 random reorderings" in good.sentence and "at least 0.25" in good.sentence
    assert vm.proof({"passed": False}).badge == "Not preserved"
    assert vm.proof(None).passed is None


def test_stages_of_a_failed_job_name_where_it_stopped() -> None:
    job = {"status": "failed", "stages": [{"name": "open", "state": "done", "seconds": 1.24},
                                          {"name": "discover", "state": "running", "seconds": None},
                                          {"name": "probe", "state": "waiting", "seconds": None}]}
    rows = vm.stage_rows(job)
    assert [(row.title, row.state, row.detail) for row in rows] == [
        ("Open the model", "done", "1.2 s"), ("Find the symmetry", "failed", "failed"), ("Read the probe data", "waiting", "")]


# ---------------------------------------------------------------- what-if
WHATIF = {"keep": [2, 4, 8], "predicted": [3.0, 2.0, 1.0], "parameters": [20, 40, 80],
          "measured": [{"keep": 4, "loss": 2.1, "rows": 9}],          "unavailable": None}


def test_numbers_of_a_keep_tell_measured_from_predicted() -> None:
    made = group("g", whatif=WHATIF)
    assert vm.keep_numbers(made, 4).measured == {"keep": 4, "loss": 2.1, "rows": 9}
    near = vm.keep_numbers(made, 5)
    assert (near.predicted, near.parameters, near.measured) == (2.0, 40, None)
    assert vm.keep_numbers(group("g"), 5).predicted is None


def test_measurements_join_the_report_once_per_keep() -> None:
    measured = [{"keep": {"g": 2}, "result": {"keep": {"g": 2}, "loss": 3.3, "rows": 9, "predicted": {"loss": 3.1}}},
                {"keep": {"g": 6}, "result": None},
                {"keep": {"g": 3, "other": 3}, "result": {"keep": {"g": 3, "other": 3}, "loss": 1.0, "rows": 9}}]
    joined = vm.with_measurements(group("g", whatif=WHATIF), measured)
    assert [point["keep"] for point in joined["whatif"]["measured"]] == [2, 4]
    assert joined["whatif"]["measured"][0]["predicted"] == 3.1
    assert [point["keep"] for point in WHATIF["measured"]] == [4]


def test_why_there_is_no_what_if() -> None:
    assert vm.whatif_reason(group("g", whatif=WHATIF)) is None
    assert vm.whatif_reason(group("g", whatif={"unavailable": "Too wide.", "keep": []})) == "Too wide."
    assert vm.whatif_reason(group("g", unavailable="No activations.")) == "No activations."
    assert vm.whatif_reason(group("g", whatif={"keep": [], "unavailable": None}))


def test_the_curve_shows_prediction_measurements_and_the_slider() -> None:
    figure = figures.whatif_curve(group("g", whatif=WHATIF), {"loss": 0.9, "loss_kind": "cross_entropy"}, 4)
    predicted, measured = figure.data
    assert list(predicted.y) == [3.0, 2.0, 1.0] and list(measured.x) == [4] and list(measured.customdata) == [9]
    assert figure.layout.shapes[-1].to_plotly_json() == figures.marker(4)
    assert figure.layout.yaxis.title.text == "cross-entropy"


@given(st.integers(1, 5000))
def test_the_slider_names_keeps_that_exist(size: int) -> None:
    marks = vm.keep_marks(size)
    assert marks == sorted(set(marks)) and marks[0] >= 1 and marks[-1] == size


# ---------------------------------------------------------------- words
@pytest.mark.parametrize(("value", "text"), [(0, "0"), (None, "\u2013"), (float("nan"), "\u2013"), (0.24187, "0.242"),
                                             (-3.0, "\u22123"), (8.88e-15, "8.9e\u221215"), (12345.0, "1.23e+04")])
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "\u2013"), (0.44, "0.4 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"),
                                             (7800, "2 h 10 min")])
def test_durations(value: float | None, text: str) -> None:
    assert words.seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (3_000_000_000, "3.0 GB")])
def test_sizes(value: int, text: str) -> None:
    assert words.size(value) == text


def test_how_long_ago() -> None:
    now = datetime(2026, 5, 1, 12, tzinfo=UTC)
    said = [words.ago((now - timedelta(seconds=s)).isoformat(), now) for s in (3, 600, 7200, 500_000)]
    assert said == ["just now", "10 min ago", "2 h ago", "6 d ago"]


def test_a_power_of_ten_is_said_as_one() -> None:
    assert words.power_of_ten(4612.7) == ("10", "4\u202f613")
    assert words.power_of_ten(0.0) is None and words.power_of_ten(None) is None


# ---------------------------------------------------------------- options
def schema() -> dict[str, Any]:
    # pydantic writes the schema: the page reads what the API shows, not a list of its own.
    options = pytest.importorskip("cipm.options")
    return {"components": {"schemas": {"AnalysisOptions": options.AnalysisOptions.model_json_schema()}}}


def test_options_become_fields_with_range_unit_and_help() -> None:
    fields = {field.name: field for field in options_form.option_fields(schema())}
    rows = fields["max_rows"]
    assert (rows.kind, rows.low, rows.high, rows.unit, rows.default) == ("integer", 2, 10_000_000, "rows", 10_000)
    assert rows.help.startswith("Probe rows used")
    assert fields["device"].choices == ("auto", "cpu", "cuda")
    assert fields["resolution"].high == pytest.approx(0.99)


def test_only_what_was_changed_is_sent() -> None:
    fields = options_form.option_fields(schema())
    values = {"max_rows": 500.0, "batch_rows": 256, "device": "cpu", "seed": "", "resolution": None, "positions": 2.5}
    assert options_form.chosen(fields, values) == {"max_rows": 500, "device": "cpu", "positions": 2.5}


def test_long_names_are_said_in_two_parts() -> None:
    row = vm.group_rows({"groups": [group("vit.layer.0.key.units", size=1, modules=[])]})[0]
    assert (row.path, row.short) == ("vit.layer.0", "key.units")
    assert vm.size_words(16, "residual stream") == "16 units, residual stream"
    assert vm.size_words(48, "units in blocks", 4) == "48 units in 4 blocks"


# ---------------------------------------------------------------- dimension, chance, policies
def test_a_dimension_carries_the_values_of_the_two_halves() -> None:
    dimension = {"variance_95": 7, "halves": {"variance_95": [6, 8]}, "nearest_neighbour": {"value": None, "halves": None}}
    assert gw.dimension_of(dimension, "variance_95") == (7, (6, 8))
    assert gw.dimension_of(dimension, "nearest_neighbour") is None
    near = {"nearest_neighbour": {"value": 2.5, "halves": None}}
    assert gw.dimension_of(dimension | near, "nearest_neighbour") == (2.5, None)


def test_chance_alignment_and_policies_in_words() -> None:
    chance = {"mean": {"path": 1.0}, "sd": {"path": 0.02}}
    row = gw.chance_row(group("g", chance=chance))
    assert row is not None and row[1] == "1 ± 0.02" and gw.chance_row(group("g")) is None
    report = {"coordination": {"before": [0.1], "after": [0.5], "mean_before": 0.1, "mean_after": 0.5},
              "groups": [group("g", orders={"modules": {}, "original": {}}, policies={"transfer": "canonical: the same."})]}
    assert gw.export_orders(report) == ["modules", "transfer"]
    notes = gw.order_notes(report, report["groups"][0])
    assert len(notes) == 2 and "0.5" in notes[0] and notes[1] == "Policy: transfer takes canonical: the same."
    chosen = group("g", portfolio={"chosen": "angle", "how": "best of 4"})
    assert gw.order_notes({}, chosen) == ["Best seriation: angle, best of 4."]


def test_a_module_says_what_is_typical_of_it_and_what_it_reads() -> None:
    module = {"id": 0, "size": 3, "units": [0, 1, 2], "representatives": [1, 0], "opposed": [2],
              "top_rows": [{"sample": 7, "activation": 2.0}]}
    links = [{"tensor": "w", "rows": "g", "cols": "h", "reads": "h", "ratio": [[1.0, 2.5]], "z": [[0.0, 9.0]]},
             {"tensor": "v", "rows": "k", "cols": "g", "reads": "g", "ratio": [[3.0]], "z": [[4.0]]},
             {"tensor": "u", "rows": "k", "cols": "g", "reads": "g", "ratio": [[1.1]], "z": [[0.5]]}]
    [row] = gw.module_rows(group("g", modules=[module]), {"interactions": links})
    assert row.notes == ("Most typical: 1, 0", "Opposed: 2", "Most active on probe rows 7",
                         "Reads h module 1: 2.5 × the expected weight", "Read by k module 0: 3 × the expected weight")
    levels = [{"modules": 2, "resolution": 0.1, "stability": 0.9}, {"modules": 5, "resolution": 0.4, "stability": 0.8}]
    assert gw.level_words(group("g", levels=levels[:1])) is None
    assert "2 (resolution 0.1, stability 0.9) \u2192 5" in (gw.level_words(group("g", levels=levels)) or "")


def test_near_duplicates_in_words():
    assert vm.merge_words({"scale": 0.984, "kept": 4, "offset": -0.104}) == "0.98 × unit 4 − 0.10"
    assert vm.merge_words({"scale": -2.0, "kept": 0, "offset": 0.001}) == "−2.00 × unit 0"

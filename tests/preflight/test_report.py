"""The command and its report, with a compile that is made up."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from configs import inset_7b, tiny
from inset_jax.core import overrides
from inset_jax.core.config import edit
from inset_jax.preflight import chips, compiler, estimate, report, search, settings, work
from inset_jax.preflight.__main__ import _plan, main
from tests.train.conftest import CONFIG as SMALL
from tests.train.runs import prepare

HERE = pathlib.Path(__file__).parent
CONFIG = str(HERE.parents[1] / "configs" / "tiny.py")
GIB = 1 << 30
LOG = """
I0 heap_simulator.h:1169] Primary algorithm failed or exceeded limit (40617246720 vs 2338). Running
I0 heap_simulator.h:1190] Fallback algorithm finished with size: 38610595840
E0 compiler.cc:1] Ran out of memory in memory space hbm. Used 42.95G of 31.25G hbm. Exceeded hbm.
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
   28.00GiB( 52%);   28.00GiB;     16646144;               41; bf16[256,16384,3584]
   31.06GiB( 58%);    3.06GiB;  30081417216;               10; 5xbf16[28,1,16384,3584]
  The rest 2425 values are less than 5% of the total size and not shown.
   99.00GiB( 58%);    3.06GiB;  30081417216;               10; of another memory
"""


def made_up(heap, refused=None):
    known = {
        "mesh": {"dcn": 1, "fsdp": 2, "context": 1, "tensor": 2},
        "parts": {"parameters, trained": GIB, "optimizer state": 2 * GIB, "autoencoder": GIB // 4},
        "beside": ["autoencoder"],
        "unsplit": [{"array": "ema/vit/k", "shape": [3, 5], "bytes": GIB, "excess": GIB // 2}],
        "stacked": [[28, 512, 64]],
        "parameters": 1000,
        "kernels": {"interval_forward": 2},
        "block": [512, 256, True],
        "trace_seconds": 1.0,
    }
    hlo = "" if refused else (HERE / "program.hlo").read_text()
    return compiler.Found(
        known, {}, heap, None, refused, hlo, False, 0, ["may be wrong"], {"all": 2.0}
    )


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Returns a function: (compile's result, flags) -> (status, JSON, page)."""

    def run(found, *flags):
        asked = []

        def compile_(*arguments):
            asked.append(arguments)
            return found

        monkeypatch.setattr(compiler, "run", compile_)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
        argv = ["x", f"--config={CONFIG}", "--slice=v6e-4", f"--out={tmp_path}", *flags]
        status = main(argv)
        return status, json.loads((tmp_path / "preflight.json").read_text()), asked[0]

    return run


def test_what_fits_ends_with_0_and_says_how_much_is_free(command, capsys, tmp_path):
    status, figures, asked = command(made_up(5 * GIB), "--fast")
    assert status == 0
    assert asked[3] is True  # fast
    assert figures["memory"]["needed"] == 8.25 * GIB
    assert figures["memory"]["fits"] and not figures["finished"]
    assert "fits: 8.25 GiB a device of 31.25, 74% free" in capsys.readouterr().out
    html = (tmp_path / "preflight.html").read_text()
    assert "fits: 8.25 GiB a device" in html and "estimate, not measured" in html
    assert not re.search(r'(src|href)="(?!data:)', html)  # nothing beside it


def test_what_does_not_fit_ends_with_1_and_names_the_largest(command, capsys):
    refused = {"used": 43 * GIB, "limit": int(31.25 * GIB), "largest": [[28 * GIB, "bf16[256,9]"]]}
    status, figures, _ = command(made_up(40 * GIB, refused))
    assert status == 1
    assert not figures["memory"]["fits"]
    told = capsys.readouterr().out
    assert "does not fit" in told and "bf16[256,9]" in told


def test_more_than_the_hbm_does_not_fit_even_if_it_was_scheduled(command):
    status, figures, _ = command(made_up(30 * GIB), "--fast")
    assert status == 1 and figures["memory"]["free"] < 0


def test_without_a_plan_of_the_memory_it_is_not_known_whether_it_fits(command, capsys, tmp_path):
    status, figures, _ = command(made_up(None), "--fast")
    assert status == 1
    assert figures["memory"]["fits"] is None
    told = capsys.readouterr().out
    assert "not known whether it fits: libtpu's log has no plan" in told
    assert "without --fast it is known" in told
    assert not re.search(r"^fits", told, re.M)
    assert re.search(r"activations and other temporaries +not known", told)
    assert "not known whether it fits" in (tmp_path / "preflight.html").read_text()


def test_a_refusal_is_an_answer_without_a_plan(command):
    refused = {"used": 43 * GIB, "limit": int(31.25 * GIB), "largest": []}
    _, figures, _ = command(made_up(None, refused))
    assert figures["memory"]["fits"] is False


def test_collectives_and_their_axes_are_in_the_report(command, capsys):
    _, figures, _ = command(made_up(GIB))
    assert figures["collectives"]["gathers_hidden"] == 1.0
    assert {row["axes"] for row in figures["collectives"]["table"]} >= {"fsdp", "fsdp+tensor"}
    assert figures["estimate"]["slow"]["step"] >= figures["estimate"]["fast"]["step"] > 0
    told = capsys.readouterr().out
    assert "asynchronous, matrix work inside" in told
    assert "the compiler warns: may be wrong" in told
    assert "1 arrays of the state are not split evenly, 0.50 GiB" in told


def test_a_finished_compile_adds_its_program_and_the_padding_of_its_arguments(tmp_path):
    (tmp_path / "log").write_text(
        "I0 heap_simulator.h:1196] Primary algorithm finished with size: 1073741824\n"
        "Program hbm requirement 1.25G:\n    overlays  0.25G\n"
    )
    sizes = {"argument_size": 4 * GIB, "temp_size": 9 * GIB}
    result = {"compile_seconds": 3.0, "memory": sizes}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "program.json").write_text(json.dumps(made_up(0).known))
    (tmp_path / "program.hlo").write_text("")
    found = compiler._read(tmp_path, "", 0, 4.0)
    assert found.finished and found.required == int(1.25 * GIB)
    parts = report.memory(chips.parse("v6e-4"), found)["parts"]
    assert parts["program"] == GIB // 4
    assert parts["padding of arguments"] == GIB
    assert sum(parts.values()) == 5.5 * GIB


def test_packs_are_fitted_to_the_slice_and_the_flag_is_told(command):
    _, figures, asked = command(made_up(GIB))
    assert asked[0].data.packs == 4
    assert figures["flags"] == ["--config.data.packs=4"]


def test_every_shape_of_a_curriculum_is_compiled(tmp_path, monkeypatch):
    asked = []
    run = lambda config, *rest: asked.append(config.data.capacity.und) or made_up(GIB)
    monkeypatch.setattr(compiler, "run", run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    stages = "--config.data.stages=((2, 'weights=(1,)'), (4, 'capacity.und=256'))"
    argv = ["x", f"--config={CONFIG}", "--slice=v6e-4", f"--out={tmp_path}", stages]
    assert main(argv) == 1 and not asked  # weights of no folder
    assert main([*argv, "--config.data.train=('records',)"]) == 0
    assert asked == [128, 256]
    assert (tmp_path / "step-0" / "preflight.json").exists()
    assert (tmp_path / "step-4" / "preflight.json").exists()


def test_layouts_are_searched_for_every_shape_of_a_curriculum(tmp_path, monkeypatch):
    asked = []
    search_one = lambda config, slice_, out, limit: asked.append((config.data.capacity.und, out))
    monkeypatch.setattr(search, "main", lambda *given: search_one(*given) or 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    stages = "--config.data.stages=((4, 'capacity.und=256'),)"
    argv = ["x", f"--config={CONFIG}", "--slice=v6e-4", f"--out={tmp_path}", stages, "--search"]
    assert main(argv) == 0
    assert asked == [(128, tmp_path / "step-0"), (256, tmp_path / "step-4")]


def test_a_compile_that_takes_too_long_is_ended_with_the_limit(tmp_path):
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(ValueError, match=r"ended after --limit=0\.1 seconds"):
            compiler._wait(sleeping, None, 0.1)
    finally:
        sleeping.kill()
        sleeping.wait()


def test_packs_that_were_asked_for_and_do_not_fit_are_refused(capsys):
    argv = ["x", f"--config={CONFIG}", "--slice=v6e-4", "--config.data.packs=6"]
    assert main(argv) == 1
    assert "data.packs=6 cannot be split over 4 devices: make it 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--slice=v6e-250"], "nearest is v6e-256"),
        ([], "--slice=NAME is missing"),
        (["--slice=v6e-4", "--config.mesh.tensor=3"], "does not divide"),
    ],
)
def test_wrong_arguments_end_with_1(flags, words, capsys):
    assert main(["x", f"--config={CONFIG}", *flags]) == 1
    assert words in capsys.readouterr().err


def test_the_compilers_refusal_is_read(tmp_path):
    found = compiler._refusal(LOG)
    assert found["used"] == int(42.95 * GIB) and found["limit"] == int(31.25 * GIB)
    assert [row[0] for row in found["largest"]] == [28 * GIB, int(3.06 * GIB)]
    (tmp_path / "log").write_text(LOG)
    read = compiler._read(tmp_path, "", 1, 1.0)
    assert read.heap == 38610595840 and read.refused == found


def test_another_failure_is_an_error_with_its_last_words(tmp_path):
    (tmp_path / "log").write_text("Traceback\nValueError: optimizer.frozen: no parameter\n")
    with pytest.raises(ValueError, match=r"does not compile .*no parameter"):
        compiler._read(tmp_path, "", 1, 1.0)
    planned = "I0 heap_simulator.h:1196] Primary algorithm finished with size: 1073741824\n"
    (tmp_path / "log").write_text(planned + "LLVM ERROR: Not enough space\n*** SIGABRT\n")
    with pytest.raises(ValueError, match=r"LLVM ERROR: Not enough .*1.00 GiB a device had been"):
        compiler._read(tmp_path, "", -6, 1.0)


def test_work_of_the_7b_is_that_of_its_parameters():
    config = edit(inset_7b.experiment(), data__packs=256)
    room, llm = config.data.capacity, config.model.llm
    found = work.parts(config, 256)
    layer = llm.model_dim * (2 * 3584 + 2 * 512 + 3 * llm.mlp_dim)
    assert found["und expert"].model == 6 * room.und * 28 * layer
    assert found["gen expert"].executed == 8 * room.gen * 28 * layer  # remat "full"
    half = work.parts(edit(config, mesh__context=2, data__packs=128), 256)
    assert half["gen expert"].model == found["gen expert"].model / 2
    frozen = work.parts(edit(config, optimizer__frozen=("llm/layers/und/*",)), 256)
    assert frozen["und expert"].model == found["und expert"].model * 2 / 3
    assert frozen["gen expert"] == found["gen expert"]
    away = edit(config, compute__remat="offload")
    assert work.parts(away, 256) == found
    # 28 layers of two streams, 26 of patches, two bytes a number, 256 packs
    assert "1,767 GB of layers' inputs" in work.words(away)[-1]
    assert not any("layers' inputs" in line for line in work.words(config))
    kept = work.parts(edit(config, compute__remat="none"), 256)
    assert kept["und expert"].executed == kept["und expert"].model


def test_settings_without_effect_are_named():
    config = edit(
        tiny.experiment(),
        compute__attention="chunked",
        compute__attention_block=(256, 256),
        optimizer__final_lr_ratio=0.5,
        optimizer__decay_follows_rate=True,
        loss__flow_weight=0.0,
    )
    told = "\n".join(settings.useless(config))
    for words in ("attention_block=(256, 256) has no effect", "final_lr_ratio=0.5 has no effect",
                  "decay_follows_rate has no effect", "flow_weight=0",
                  "all logits exist at once"):  # fmt: skip
        assert words in told


def test_moments_that_stand_still_and_sums_without_effect_are_named():
    config = edit(
        tiny.experiment(),
        compute__dtype="float32",
        compute__gradient_sums="float32",
        optimizer__moments_dtype="bfloat16",
        optimizer__beta2=0.999,
    )
    told = "\n".join(settings.useless(config))
    assert "compute.gradient_sums='float32' has no effect" in told
    assert "optimizer.beta2=0.999 with optimizer.moments_dtype='bfloat16'" in told
    usual = edit(config, compute__dtype="bfloat16", optimizer__beta2=0.95)
    told = "\n".join(settings.useless(usual))
    assert "gradient_sums" not in told and "moments_dtype" not in told


def test_a_stream_that_the_context_axis_does_not_divide_is_named():
    config = edit(inset_7b.experiment(), mesh__context=4, data__capacity__gen=1022)
    (line,) = [line for line in settings.useless(config) if "mesh.context" in line]
    assert "mesh.context=4 does not divide data.capacity.gen=1022" in line
    assert "; 1024 would be split" in line


def test_data_at_hand_say_how_the_capacities_fit_them(tmp_path):
    config = overrides.load(str(prepare(tmp_path, SMALL) / "experiment.py"))
    told = "\n".join(_plan(config))
    assert "12 examples" in told and re.search(r"data.capacity.und=\d+ .* fit best", told)
    assert _plan(edit(config, data__train=(str(tmp_path / "none"),))) == []
    (unread,) = _plan(edit(config, data__tokenizer=str(tmp_path / "none")))
    assert unread.startswith("not known: ") and "none" in unread


def test_two_slices_are_an_axis_of_the_mesh():
    config, flags = settings.fitted(
        inset_7b.experiment(), inset_7b.experiment(), chips.parse("2x v5p-128")
    )
    assert (config.mesh.dcn, config.data.packs) == (2, 128)
    assert flags == ["--config.mesh.dcn=2", "--config.data.packs=128"]


def test_only_several_slices_send_over_the_slow_network():
    one, two = (chips.parse(name) for name in ("v5p-128", "2x v5p-128"))
    assert estimate.bandwidth(one, ("dcn",)) == estimate.bandwidth(one, ("fsdp",))
    assert estimate.bandwidth(two, ("dcn",)) == two.chip.dcn
    assert estimate.bandwidth(one, ("tensor",)) == estimate.bandwidth(one, ("fsdp",)) / 3


def test_the_way_to_the_host_is_waited_for_or_beside_other_work():
    slice_ = chips.parse("v6e-256")
    config = edit(inset_7b.experiment(), data__packs=256, compute__remat="offload")
    counted, away = work.parts(config, 256), work.to_host(config) / 256
    assert work.to_host(edit(config, compute__remat="full")) == 0
    ends = estimate.estimate(slice_, counted, [], 0, away)
    without = estimate.estimate(slice_, counted, [], 0)
    assert ends["slow"].host == pytest.approx(2 * 1767e9 / 256 / estimate.HOST, rel=1e-3)
    assert ends["slow"].step == pytest.approx(without["slow"].step + ends["slow"].host)
    assert ends["fast"].step == without["fast"].step
    longer = estimate.estimate(slice_, counted, [], 0, 100 * away)
    assert longer["fast"].step == pytest.approx(longer["fast"].host)


def test_search_ranks_what_fits_by_speed():
    layout = lambda name, fits, speed, needed, free=0.5: {
        "layout": name,
        "memory": {"fits": fits, "needed": needed, "free": free, "limit": GIB},
        "tokens_a_second": speed,
    }
    rows = [
        layout("large", False, 9, 3 * GIB),
        layout("slow", True, 1, 1),
        layout("tight", True, 3, 1, 0.09),
        layout("fast", True, 2, 2),
    ]
    rows += [layout("larger", False, 99, 4 * GIB), layout("unknown", None, 99, 5 * GIB)]
    ranked = search.rank(rows)
    names = ["fast", "slow", "tight", "large", "larger", "unknown"]
    assert [one["layout"] for one in ranked] == names
    free = ["free", "50%", "50%", "9%", "no", "no", "not known"]
    assert [row[2] for row in search.table(ranked)] == free


def test_search_tries_meshes_that_divide_the_heads():
    tried = list(search.candidates(inset_7b.experiment(), chips.parse("v6e-64")))
    layouts = {(c.mesh.context, c.mesh.tensor, c.compute.remat) for c in tried}
    assert (1, 1, "full") in layouts and (1, 1, "dots") in layouts and (2, 1, "full") in layouts
    assert len(layouts) == len(tried)
    for config in tried:
        assert config.data.packs * config.mesh.context * config.mesh.tensor == 64


def test_the_verdict_calls_a_small_margin_tight():
    figures = {"memory": {"needed": 95, "limit": 100, "free": 0.05, "fits": True}}
    assert "less than 10% is tight" in report.verdict(figures)

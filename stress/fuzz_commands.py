"""The command line as a target: arguments, one a line, are given to it in this process, in a scratch folder.

Nothing outside the folder is reached: an argument's slashes are taken away. What would take long is cut short:
playing after a few notes, and training, tuning, comparing and serving where their work would begin.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.testing import CliRunner

from fuzz_forms import Change, Form
from made_corpus import piece
from prepared import prepared
from pulse88 import ablate, audio, crew, finetune, generate, listening, midi_file, train
from pulse88.cli import main
from pulse88.config import TINY
from pulse88.engine import weights as weights_file
from pulse88.engine.adapter import write_adapter
from pulse88.overlap_index import build
from pulse88.serve import run as serve_run
from pulse88.vocabulary import FINE

NOTES = 12  # that are played of one command line
STATUSES = (0, 1, 2, 130)  # that a command may end with
NUMERIC = ("integer", "float")
DOOR = ("status 2",)
NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "3",
    "12",
    "20",
    "64",
    "0.5",
    "1e-9",
    "1e9",
    "2147483648",
    "9223372036854775808",
    "1e400",
]
NUMBERS += ["nan", "inf", "-inf", "0x10", "1_0", "1/1", "2/2", "3/2"]
WORDS = ["A=mine", "=", "a=", "=b", "steps=1", "lr=nan", "dropout=1", "seed=-1", "fine", "published", "numpy", "native"]
WORDS += ["auto", "tiny", "base", "true", "null", "é", "--", "-", ".", "--help"]
WORDS += ["", "\udcff", "x" * 300, "missing", " "]

MADE = """
continue 0.mid --weights w --notes 5 --seed-notes 20 -o c.mid
prepare midi -o parts --part 1/2 --workers 0
prepare midi -o parts --part 2/2 --workers 0
"""  # makes files that other commands read

LINES = """
continue 0.mid --weights w --seed-notes 20 --notes 3
continue 0.mid --weights w --seed-notes 20 --seconds 2 --takes 2 -o o.mid --random-seed 1 --top-p 0.9
continue c.mid --weights w --seed-notes 20 --only-new --density 0 4 --register 48 84 --in-key --notes 2
continue 0.mid --weights w --seed-notes 20 --guard --best-of 2 --index ix --max-overlap 20 --notes 4
continue 0.mid --weights w --seed-notes 20 --adapter ad --until-end --end-within 3 --engine numpy
replay c.mid --weights w -o again.mid
render 0.mid o.wav
show c.mid o.png
tokens 0.mid --grid fine
info --weights w --engine numpy
prepare mine -o out --workers 0 --grid fine --splits validation=list.txt
prepare midi 0.mid -o out --licences lic.json --licences made=CC0 --part 1/2
merge parts -o out
stats data --png o.png
train --config tiny --data data --out run --set steps=2 --set dropout=0.5
train --config tiny --data data --out run --kernel loop --sitting-minutes 1
export run -o o --fp32 --note a=b
finetune --data mine -o o --weights w --kind low-rank
evaluate --weights w --data data --pieces 1 --engine native --batch 1
evaluate --weights w --data data --pieces 1 -o rep --prompts 1 --takes 1 --no-baselines
ablate tiny --show
ablate tiny --data data --out run --only base --share 1/2 --other-data fine=data
index data -o o.npz --every 20
originality 0.mid c.mid --index ix --data data --whole
listen-test A=mine B=theirs -o page --title x --seconds 2 --random-seed 3
listen-results key.json a.csv
serve --host 127.0.0.1 --port 0 --workers 1 --weights w --token abc --name a.b
--help
--version
"""  # a good line of every command, and more with many options


class Enough(BaseException):
    """A command has come to its work."""


class Commands:
    """`seeds` are good command lines, `feed` runs one, `good` is the folder that each begins with."""

    def __init__(self, folder: Path) -> None:
        self.good, self._scratch = folder / "good", folder / "scratch"
        self.good.mkdir(parents=True)
        self._fill(self.good)
        self._played = 0
        self._cut_short()
        self.seeds = [line.replace(" ", "\n").encode() for line in LINES.strip().splitlines()]
        for line in self.seeds:  # so that what is imported later isn't taken for growth
            with contextlib.suppress(ValueError):
                self.feed(line)

    def feed(self, data: bytes) -> str:
        """How the command ended. Any exception that came out is raised again; ValueError where it refused."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        shutil.copytree(self.good, self._scratch)
        text = data.decode("utf-8", "surrogateescape").replace("\0", "").replace("..", "")
        text = re.sub(r"(?<!\d)/|/(?!\d)", "", text)  # 1/2 stays
        self._played = 0
        before = Path.cwd()
        os.chdir(self._scratch)
        try:
            result = CliRunner().invoke(main, text.split("\n"))
        except Enough:
            return "came to its work"
        finally:
            os.chdir(before)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code not in STATUSES:
            raise RuntimeError(f"exit status {result.exit_code}: {result.output}")
        if result.exit_code:
            raise ValueError(f"status {result.exit_code}: {result.output}")
        return "done"

    @staticmethod
    def _fill(folder: Path) -> None:
        """Good files of every kind that a command reads."""
        tensors = weights_file.random_tensors(TINY, 0)
        weights_file.save(folder / "w", weights_file.quantise(tensors), weights_file.metadata_of(TINY, FINE))
        base = weights_file.read(folder / "w")
        low = {"layers.0.gdn1.in_proj.lora_A": np.ones((2, 32)), "layers.0.gdn1.in_proj.lora_B": np.ones((16, 2))}
        write_adapter(folder / "ad", "low-rank", base, {k: v.astype(np.float32) for k, v in low.items()}, {})
        for seed in range(2):
            midi_file.write(piece(seed, 30), folder / f"{seed}.mid")
        prepared(folder, train=3, validation=1, notes=260)
        p = piece(0)
        build([("a/b", np.asarray(p.onset), np.asarray(p.pitch))]).write(folder / "ix")
        (folder / "mine").mkdir()
        (folder / "theirs").mkdir()
        for name in ("mine", "theirs"):
            midi_file.write(piece(3, 20), folder / name / "a.mid")
        before = Path.cwd()
        os.chdir(folder)
        for line in MADE.strip().splitlines():
            result = CliRunner().invoke(main, line.split())
            assert result.exit_code == 0, result.output
        os.chdir(before)
        (folder / "list.txt").write_text("a.mid\n")
        (folder / "lic.json").write_text('{"made": "CC0"}')
        clips = {"c1": {"system": "A", "prompt": "p"}, "c2": {"system": "B", "prompt": "p"}}
        (folder / "key.json").write_text(json.dumps({"test": "t", "clips": clips}))
        answers = ["test,listener,kind,item,clips,scale,value", "t,me,pair,i,c1 c2,preference,first"]
        answers += [f"t,me,rating,{n},c{n},{scale},{n + 2}" for n in (1, 2) for scale in listening.SCALES]
        (folder / "a.csv").write_text("\n".join(answers) + "\n")

    def _cut_short(self) -> None:
        def enough(*given: Any, **named: Any) -> Any:
            raise Enough

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def play(*given: Any, **named: Any) -> Any:
                self._played += 1
                if self._played > NOTES:
                    raise Enough
                return real(*given, **named)

            return play

        def in_this_process(function: Any, tasks: Any, processes: int) -> Any:
            return (crew.Done(task, function(task)) for task in tasks)

        generate.advance = counted(generate.advance)
        generate.advance_together = counted(generate.advance_together)
        crew.share_out = in_this_process  # type: ignore[assignment]
        for room, name in ((train, "train"), (finetune, "finetune"), (ablate, "run"), (serve_run, "serve")):
            setattr(room, name, enough)
        audio.render = enough
        listening.sound = lambda *given: b"no sound"


def arguments_form(folder: Path) -> Form:
    """Options that the command has are given, changed and taken away; a quarter of the damages keep to nothing."""
    files = sorted(path.name for path in folder.iterdir())

    def value_of(parameter: click.Parameter, chance: random.Random) -> str:
        kind = parameter.type
        if isinstance(kind, click.Choice):
            likely: list[str] = [str(choice) for choice in kind.choices]
        elif isinstance(kind, click.Path):
            likely = files
        else:
            likely = NUMBERS if isinstance(kind, (click.IntRange, click.FloatRange)) or kind.name in NUMERIC else WORDS
        return chance.choice(likely if chance.random() < 0.9 else (*WORDS, *NUMBERS, *files))

    def form(data: bytes, chance: random.Random, change: Change) -> bytes:
        line = data.decode("utf-8", "surrogateescape").split("\n")
        command = main.commands.get(line[0])
        for _ in range(chance.choice((1, 1, 2, 3))):
            at = chance.randrange(len(line))
            kind = chance.randrange(8)
            if kind < 6 and command:
                parameter = chance.choice(command.params)
                given = [n for n, word in enumerate(line) if word in (*parameter.opts, *parameter.secondary_opts)]
                if isinstance(parameter, click.Argument):
                    line[1:2] = [value_of(parameter, chance)] * chance.choice((0, 1, 1, 1, 2))
                elif given and chance.random() < 0.3:
                    del line[given[0] : given[0] + 1 + parameter.nargs * (not getattr(parameter, "is_flag", False))]
                else:
                    values = [] if getattr(parameter, "is_flag", False) else range(parameter.nargs)
                    asked = [chance.choice((*parameter.opts, *parameter.secondary_opts))]
                    place = given[0] if given else len(line)
                    line[place : place + (1 + len(values) if given else 0)] = [
                        *asked,
                        *(value_of(parameter, chance) for _ in values),
                    ]
            elif kind == 6:
                line[at] = change(line[at].encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
            else:
                line[at : at + chance.randrange(2)] = [chance.choice((*WORDS, *NUMBERS, *files, *main.commands))]
        return "\n".join(word.replace("\n", "") for word in line[:40]).encode("utf-8", "surrogateescape")

    return form

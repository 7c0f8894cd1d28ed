"""Pictures and the page of a run, from a folder whose numbers are known."""

import html.parser
import json
import logging
import os
import shutil
import signal
import subprocess
import time

import line_model
import pytest
import torch
from quiet import quiet_trainer

from espnet3_lite.callbacks import ModelCheckpoint
from espnet3_lite.cli.commands import main
from espnet3_lite.exceptions import MisconfigurationException
from espnet3_lite.loggers import CSVLogger
from espnet3_lite.report import images
from espnet3_lite.report.history import read_run
from espnet3_lite.report.images import RunImages
from espnet3_lite.report.page import page, write_report
from espnet3_lite.report.pictures import plot, together

pytest.importorskip("matplotlib")

LOG = """epoch,iter_time,lr-Adam,optim0_lr0,step,train/loss,train/loss_epoch,train_grad_norm,valid/loss
,,0.1,,0,,,,
0,,,,0,4.0,,1.0,
0,,,,1,2.0,,3.0,
0,0.5,,0.1,1,,3.0,,
0,,,,1,,,,2.5
1,,,,2,1.0,,5.0,
1,0.25,,0.05,3,,1.5,,
1,,,,3,,,,nan
"""


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "one"
    (run / "lightning_logs/version_0").mkdir(parents=True)
    (run / "lightning_logs/version_0/metrics.csv").write_text(LOG)
    (run / "status.json").write_text(json.dumps({"status": "finished", "epoch": 2, "error": None}))
    (run / "config.yaml").write_text("note: a < b & c\n")
    (run / "train.log").write_text(
        "WARNING epoch 0, batch 1: loss is nan; skipped on all workers, batch <7>\nINFO other\n"
    )
    best = {"monitor": "valid/loss", "best_k_models": {"/old/place/epoch0_step2_valid.loss.ckpt": torch.tensor(2.5)}}
    torch.save({"callbacks": {"ModelCheckpoint{...}": best}, "state_dict": {}}, run / "last.ckpt")
    torch.save({}, run / "epoch0_step2_valid.loss.ckpt")
    torch.save({}, run / "valid.loss.ave_1best.pth")
    return run


def test_curves_are_epochs_means_by_picture(folder):
    pictures = read_run(folder).pictures()
    assert {name: (picture.axis, picture.curves) for name, picture in pictures.items()} == {
        "loss": ("epoch", {"train": [(1, 3.0), (2, 1.5)], "valid": [(1, 2.5)]}),  # no point where it was not finite
        "learning_rate": ("epoch", {"optim0_lr0": [(1, 0.1), (2, 0.05)]}),  # once, by its name with an epoch
        "gradient_norm": ("epoch", {"train_grad_norm": [(1, 2.0), (2, 5.0)]}),
        "seconds": ("epoch", {"iter_time": [(1, 0.5), (2, 0.25)]}),
    }
    assert list(pictures) == ["loss", "learning_rate", "gradient_norm", "seconds"]


def test_plot_writes_a_picture_each_and_several_runs_in_one(folder, tmp_path, capsys, monkeypatch):
    main(["plot", str(folder)])
    names = ["gradient_norm.png", "learning_rate.png", "loss.png", "seconds.png"]
    assert sorted(line.rpartition("/")[2] for line in capsys.readouterr().out.split()) == names
    assert all((folder / "images" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    other = shutil.copytree(folder, tmp_path / "two")
    merged = together([read_run(folder), read_run(other)])
    assert sorted(merged["loss"].curves) == ["one: train", "one: valid", "two: train", "two: valid"]
    monkeypatch.chdir(tmp_path)
    plot([folder, other])
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == names


class Tags(html.parser.HTMLParser):
    """Counts tags, and notes the first that is closed in the wrong place."""

    def __init__(self):
        super().__init__()
        self.open, self.count, self.links = [], {}, []

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value for name, value in attributes if name in ("src", "href") and not value.startswith("#")]
        self.open += [tag] if tag not in ("meta", "br") else []

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop() if tag not in ("meta", "br") else None

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(folder):
    text = page(read_run(folder))
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and tags.count["svg"] == 4
    assert [link for link in tags.links if "://" in link or "//" in link] == []
    for name, kind in (("epoch0_step2_valid.loss.ckpt", "valid/loss 2.5"),
                       ("valid.loss.ave_1best.pth", "an average of the best")):  # fmt: skip
        size = f"{(folder / name).stat().st_size / 1e3:.0f} kB"
        assert f"<td>{name}</td><td>{size}</td><td>{kind}</td>" in text
    assert "<td>train/loss</td><td>1.5</td><td>1.5</td><td>3</td>" in text
    assert "Skipped batches: 1" in text and "batch &lt;7&gt;" in text and "note: a &lt; b &amp; c" in text
    assert "<td>iter_time</td><td>0.375</td>" in text


@pytest.mark.slow
def test_the_page_opens_in_a_browser(folder, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed (Debian's package: chromium)")
    main(["report", str(folder), "--output", str(tmp_path / "page.html")])
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{tmp_path}/page.html"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0 and shown.stdout.count("<svg") == 4


def test_a_folder_without_a_log_is_refused(tmp_path, capsys):
    with pytest.raises(MisconfigurationException, match="no metrics.csv below it.*Name a run's exp_dir"):
        read_run(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "nowhere")])
    assert ended.value.code == 2 and "there is no such folder" in capsys.readouterr().err


def log_in(folder, values="epoch,step,valid/loss\n0,1,0.5\n"):
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(values)


def test_a_folder_of_several_runs_is_refused_with_their_names(folder, tmp_path, capsys):
    log_in(tmp_path / "two" / "lightning_logs" / "version_0")
    for command in ("plot", "report"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(tmp_path)])
        said = f"{tmp_path}: holds 2 runs: {tmp_path}/one, {tmp_path}/two; name one"
        assert ended.value.code == 2 and said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_folder_that_is_a_run_is_its_own_though_others_lie_in_it(folder):
    log_in(folder / "other" / "lightning_logs" / "version_0")  # newer
    (folder / "other" / "status.json").write_text("{}")
    assert list(read_run(folder).pictures()) == ["loss", "learning_rate", "gradient_norm", "seconds"]
    assert list(read_run(folder / "other").pictures()) == ["loss"]


@pytest.mark.parametrize(
    ("log", "named"),
    [("run/lightning_logs/version_0", "."), ("run/lightning_logs/version_0", "run/lightning_logs"),
     ("run/lightning_logs/version_0", "run/lightning_logs/version_0"), ("logs/name/version_3", "logs"), ("log", "."),
     ("log", "log")],
)  # fmt: skip
def test_a_folder_that_leads_to_one_run_is_read(log, named, tmp_path):
    log_in(tmp_path / log)
    assert read_run(tmp_path / named).rows == [{"epoch": 0.0, "step": 1.0, "valid/loss": 0.5}]


def test_the_newest_log_of_a_run_counts_and_what_stands_beside_it(folder, tmp_path):
    log_in(folder / "lightning_logs" / "version_1")
    run = read_run(tmp_path)  # there is no other run below it
    assert (run.folder, run.status["status"], run.rows) == (
        folder, "finished", [{"epoch": 0.0, "step": 1.0, "valid/loss": 0.5}],
    )  # fmt: skip


def test_a_configuration_file_names_its_run(folder, tmp_path, capsys):
    config = tmp_path / "training.yaml"
    config.write_text(f"exp_dir: {folder}\n")
    main(["plot", str(config)])
    assert {line.rpartition("/")[0] for line in capsys.readouterr().out.split()} == {str(folder / "images")}
    main(["report", str(config)])
    assert capsys.readouterr().out == f"{folder}/report.html\n" and (folder / "report.html").exists()


class Line(line_model.Line):
    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).mean()
        self.log("train/loss", loss)
        return loss


def fit(folder, epochs, module=None):
    logger = CSVLogger(folder)
    trainer = quiet_trainer(max_epochs=epochs, logger=logger, callbacks=[RunImages(folder)], log_every_n_steps=1)
    trainer.fit(module or Line(), [torch.ones(2, 1)] * 2)


def test_a_run_that_was_killed_while_it_drew_draws_again_though_nothing_is_left_to_train(tmp_path, monkeypatch):
    drawn = []
    saves = [ModelCheckpoint(dirpath=tmp_path / "states", save_last=True), RunImages(tmp_path)]
    settings = dict(max_epochs=1, callbacks=saves, log_every_n_steps=1, enable_checkpointing=True)
    quiet_trainer(logger=CSVLogger(tmp_path, version=0), **settings).fit(Line(), [torch.ones(2, 1)] * 2)
    (tmp_path / "images" / "loss.png").rename(tmp_path / "images" / f".loss.png.new.{2**22 + 1}.tmp")
    last = tmp_path / "states" / "last.ckpt"
    monkeypatch.setattr(RunImages, "_draw", lambda self, trainer: drawn.append(trainer.global_step))
    quiet_trainer(logger=CSVLogger(tmp_path, version=0), **settings).fit(Line(), [torch.ones(2, 1)] * 2, ckpt_path=last)
    assert list((tmp_path / "images").iterdir()) == [] and drawn == [2]


def test_the_callback_draws_at_the_end_and_no_more_often_than_it_may(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(images, "write_pictures", lambda pictures, folder: drawn.append((sorted(pictures), folder)))
    fit(tmp_path, epochs=3)
    assert drawn == [(["loss"], tmp_path / "images")]  # half a minute has not passed
    monkeypatch.setattr(images, "DRAW_EVERY", 0.0)
    monkeypatch.setattr(images, "LARGEST_SHARE", 1e9)
    drawn.clear()
    fit(tmp_path, epochs=3)
    assert len(drawn) == 4  # each epoch's, and the end's
    monkeypatch.setattr(images, "LARGEST_SHARE", 1e-4)  # drawing is slow: not again for long
    monkeypatch.setattr(images, "write_pictures", lambda pictures, folder: drawn.append(time.sleep(0.01)))
    drawn.clear()
    fit(tmp_path, epochs=3)
    assert len(drawn) == 2  # the first epoch's, and the end's


def test_without_matplotlib_there_is_one_hint(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(images, "can_draw", lambda: False)
    caplog.set_level(logging.INFO)
    fit(tmp_path, epochs=2)
    assert caplog.text.count('pip install "espnet3_lite[plot]"') == 1 and not (tmp_path / "images").exists()


def test_after_a_signal_nothing_is_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(images, "write_pictures", lambda pictures, folder: drawn.append(folder))
    monkeypatch.setattr(images, "DRAW_EVERY", 0.0)

    class Signalled(Line):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == self.at:
                os.kill(os.getpid(), signal.SIGTERM)

    module = Signalled()
    for module.at in (0, 1):  # within an epoch, and with its last batch
        with pytest.raises(SystemExit):
            fit(tmp_path, epochs=3, module=module)
    assert drawn == []


def test_folders_and_files_may_be_given_as_text(folder, tmp_path):
    assert read_run(str(folder)).status == read_run(folder).status
    assert write_report(str(folder), str(tmp_path / "page.html")).read_text().startswith("<!DOCTYPE html>")
    assert all(path.parent == tmp_path / "pictures" for path in plot([str(folder)], str(tmp_path / "pictures")))

"""The picture of the loss: `python plot_loss.py OUT1/loss.csv OUT2/loss.csv picture.png`.

Runs that go on from each other stand behind each other on the time axis.
"""
import csv
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main():
    *logs, picture = sys.argv[1:]
    train, held, rounded, borders = [], [], [], [0.0]
    for path in logs:
        with open(path, encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        for row in rows:
            x = (borders[-1] + float(row["tokens"])) / 1e6
            train.append((x, float(row["train_loss"])))
            if row["heldout_loss"]:
                held.append((x, float(row["heldout_loss"])))
            if row["rounded"] == "1":
                rounded.append(x)
        borders.append(borders[-1] + float(rows[-1]["tokens"]))
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=100)
    axes.plot(*zip(*train), lw=0.7, color="#7aa6c2", label="training (with dropout)")
    axes.plot(*zip(*held), lw=1.6, color="#b5442e", label="held out")
    axes.axvspan(rounded[0], rounded[-1], color="#eeeeee", zorder=0,
                 label="weights rounded to their GGUF formats")
    for border in borders[1:-1]:
        axes.axvline(border / 1e6, color="#666666", lw=0.8, ls="--")
        axes.text(border / 1e6, 2.93, " repetitions\n no longer targets", fontsize=8, va="top")
    axes.set_ylim(1.5, 3.0)
    axes.set_xlim(0, borders[-1] / 1e6)
    axes.set_xlabel("training tokens, millions")
    axes.set_ylabel("loss, nats per token")
    axes.legend(frameon=False, loc="upper center")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    main()

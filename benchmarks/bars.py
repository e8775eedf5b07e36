"""The speed that fastloss promises, and whether measurements keep the promise."""

AUTOGRAD = 30e-6  # seconds of a call that autograd and Python take, whatever the tensor's size

# (loss, shape): at least so many times the speed of torch.compile of the reference; and, without AUTOGRAD, at most so
# many times the time of torch.exp(logits, out=...). float32, 2 threads, recycled memory.
BARS = {
    ("focal", (6400, 11)): (4, 1.25),
    ("cross entropy", (6400, 11)): (3, 1.25),
    ("label smoothing", (6400, 11)): (3, 1.25),
    ("GHM-C", (6400, 11)): (3, 1.6),
    ("focal", (65536, 11)): (4, 1.0),
    ("soft targets", (65536, 11)): (3, 1.6),
    ("soft targets", (8192, 1000)): (2, 1.3),
    ("focal", (3001, 37)): (2.5, 1.3),
    ("focal", (8192, 1000)): (2, 0.9),
    ("cross entropy", (8192, 1000)): (2, 0.9),
    ("focal", (2048, 32000)): (3, 0.65),
    ("cross entropy", (2048, 32000)): (3, 0.65),
    ("cross entropy", (4, 150, 128, 128)): (2, 1.2),
    ("sigmoid focal", (100000, 80)): (20, 2.0),
    ("asymmetric", (100000, 80)): (5, 2.0),
}
QUICK = [
    ("focal", (6400, 11)),
    ("GHM-C", (6400, 11)),
    ("focal", (8192, 1000)),
    ("cross entropy", (2048, 32000)),
    ("sigmoid focal", (100000, 80)),
]
IN_PLACE_SHAPE, IN_PLACE_BAR = (2048, 32000), 8  # against torch.compile, with the system's default malloc
AVX2_BAR = 0.6  # of AVX-512's speed


def verdicts(measured: dict) -> list[tuple[bool, str]]:
    """(kept, sentence) for every bar that ``measured``, of :func:`report.load`, has the figures for."""
    found = []
    for key, seconds in measured.items():
        if (key.device, key.threads, key.dtype) != ("cpu", 2, "float32") or key.cpu_capability == "avx2":
            continue
        name = f"{key.loss} {key.shape_text}"
        own, exp = seconds["fastloss"], seconds["exp"]
        if key.malloc == "default":
            if key.shape == IN_PLACE_SHAPE:
                speed = seconds["torch.compile"] / seconds["fastloss in place"]
                text = f"{name}, in place, default malloc: {speed:.2f} x torch.compile's speed, bar {IN_PLACE_BAR}"
                found.append((speed >= IN_PLACE_BAR, text))
            continue
        if (key.loss, key.shape) in BARS:
            speed_bar, op_bar = BARS[key.loss, key.shape]
            speed, op = seconds["torch.compile"] / own, (own - AUTOGRAD) / exp
            found.append((speed >= speed_bar, f"{name}: {speed:.2f} x torch.compile's speed, bar {speed_bar}"))
            found.append((op <= op_bar, f"{name}: op takes {op:.2f} x torch.exp's time, bar {op_bar}"))
        ratio = seconds["fastloss bfloat16"] / own
        found.append((ratio <= 1, f"{name}: bfloat16 takes {ratio:.2f} x float32's time, bar 1"))
        avx2 = measured.get(key._replace(cpu_capability="avx2"))
        if avx2:
            # Two processes: torch.exp, the same code in both, says how fast the machine was in each.
            share = (own / exp) / (avx2["fastloss"] / avx2["exp"])
            found.append((share >= AVX2_BAR, f"{name}: AVX2 has {share:.0%} of AVX-512's speed, bar {AVX2_BAR:.0%}"))
    return found

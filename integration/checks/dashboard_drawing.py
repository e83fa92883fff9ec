# SPDX-License-Identifier: Apache-2.0
"""Draws a dashboard of Grafana as one SVG: a grid of panels with lines, or with a number. Simpler than Grafana, but with the same
places, titles, units, legends, gaps and thresholds."""
import html, math, re

COLUMN, ROW, GAP, EDGE = 60, 34, 8, 16
# Readable on light and on dark.
COLORS = ["#3b9a4a", "#2f7fd6", "#d9822b", "#d1435b", "#8e5bc4", "#12939a", "#a8862a", "#c2559d", "#6f7f8f", "#6b8e23"]
THRESHOLDS = {"green": "#3b9a4a", "red": "#d1435b", "orange": "#d9822b", "yellow": "#a8862a"}
STYLE = """
    .board { fill: #f4f5f7; } .panel { fill: #ffffff; stroke: #d5dae1; }
    text { fill: #33404f; font-size: 12px; } .title { fill: #1d2733; font-weight: bold; } .row { fill: #1d2733; font-size: 15px; font-weight: bold; }
    .axis { fill: #56637a; font-size: 11px; } .grid { stroke: #e4e8ed; } .number { font-size: 32px; font-weight: bold; }
    .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
    @media (prefers-color-scheme: dark) {
      .board { fill: #0f1319; } .panel { fill: #181d25; stroke: #343c48; } text { fill: #ccd5df; } .title, .row { fill: #e8edf3; }
      .axis { fill: #a7b4c4; } .grid { stroke: #2a313c; }
    }
"""
# Widths of characters of the fonts, at most.
LETTER, SMALL = 7.1, 6.6
LEGEND_LINES = 3

# Grafana's units: factors with suffixes, the largest first.
SECONDS = [(86400, "day"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")]
SI = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")]
IEC = [(2 ** 30, "GiB"), (2 ** 20, "MiB"), (2 ** 10, "KiB"), (1, "B")]
UNITS = {"s": SECONDS, "short": SI, "percentunit": [(0.01, "%")], "bytes": IEC}
UNITS |= {unit: [(factor, prefix + suffix) for factor, prefix in SI] for unit, suffix in
          {"ops": "ops/s", "cps": "c/s", "reqps": "req/s", "Bps": "B/s"}.items()}

def rounded(number):
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"

def formatted(value, unit, largest=None):
    """A value with its unit, as an axis up to `largest` has it."""
    steps = UNITS[unit]
    largest = abs(value if largest is None else largest)
    factor, suffix = next(((f, s) for f, s in steps if largest >= f * 0.999), steps[-1])
    if largest == 0:
        factor, suffix = next(step for step in steps if step[0] == 1 or len(steps) == 1)
    return f"{rounded(value / factor)}{'' if suffix in ('', 'k', 'M', 'G', '%') else ' '}{suffix}"

def ticks(largest, unit, decimals=None):
    """Round numbers from 0 to at least `largest`, about four; `decimals`: 0 for whole numbers."""
    if largest <= 0:
        largest = 1
    factor = next((f for f, _ in UNITS[unit] if largest >= f * 0.999), UNITS[unit][-1][0])
    rough = largest / factor / 4
    scale = 10 ** math.floor(math.log10(rough))
    step = next(m for m in (1, 2, 2.5, 5, 10) if m * scale >= rough * 0.999) * scale
    if decimals == 0 and factor == 1:
        step = math.ceil(step)
    return [number * step * factor for number in range(math.ceil(largest / factor / step * 0.999) + 1)]

def legend_of(labels, pattern):
    if not pattern:
        return "{" + ", ".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"
    return re.sub(r"\{\{ *(\w+) *\}\}", lambda match: labels.get(match[1], ""), pattern).strip()

def text(x, y, content, kind="", anchor="start", color=None):
    style = f' style="fill:{color}"' if color else ""
    return (f'<text x="{x:.0f}" y="{y:.0f}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}'
            f'{f" text-anchor={chr(34)}{anchor}{chr(34)}" if anchor != "start" else ""}{style}>{html.escape(content)}</text>')

def shortened(content, width, letter=LETTER):
    room = int(width / letter)
    return content if len(content) <= room else content[:room - 1] + "…"

def path_of(points, step):
    """A path through points of whole pixels, without those on a straight line; interrupted where a step has no point."""
    runs = []
    for at, x, y in points:
        if runs and at - runs[-1][-1][0] <= step * 1.5:
            runs[-1].append((at, x, y))
        else:
            runs.append([(at, x, y)])
    lines, dots = [], []
    for run in runs:
        kept = []
        for _, x, y in run:
            while len(kept) > 1 and kept[-1][1] == kept[-2][1] == y:
                kept.pop()
            kept.append((x, y))
        if len(kept) == 1:
            dots.append(kept[0])
            continue
        moves = [f"l{x - a} {y - b}".replace(" -", "-") for (a, b), (x, y) in zip(kept, kept[1:])]
        lines.append(f"M{kept[0][0]} {kept[0][1]}{''.join(moves)}")
    return "".join(lines), dots

def stacked(series):
    """Each series on those before it; one without a value counts as 0."""
    times, below, result = sorted({at for _, points in series for at, _ in points}), {}, []
    for name, points in series:
        known = dict(points)
        below = {at: below.get(at, 0) + known.get(at, 0) for at in times}
        result.append((name, sorted(below.items())))
    return result

def legend(series, x, bottom, width):
    """The lines of the legend, and its height."""
    lines, place = [[]], 0
    for number, (name, _) in enumerate(series):
        name = shortened(name, width - 20, SMALL)
        size = 20 + len(name) * SMALL
        if place and place + size > width:
            lines.append([])
            place = 0
        lines[-1].append((place, number, name))
        place += size
    if len(lines) > LEGEND_LINES:
        hidden = sum(map(len, lines[LEGEND_LINES:])) + 1
        lines = lines[:LEGEND_LINES]
        place, _, _ = lines[-1][-1]
        lines[-1][-1] = (place, None, f"{hidden} more")
    parts = []
    for row, line in enumerate(lines):
        y = bottom - (len(lines) - 1 - row) * 15
        for place, number, name in line:
            if number is not None:
                parts.append(f'<rect x="{x + place:.0f}" y="{y - 5}" width="10" height="3" fill="{COLORS[number % len(COLORS)]}"/>')
            parts.append(text(x + place + 13, y, name, "axis"))
    return parts, len(lines) * 15

def table(series, unit, x, top, bottom, width):
    """The legend as a table beside the lines: the largest value of each, the largest first."""
    rows = sorted(((max((v for _, v in points), default=0), -number, name) for number, (name, points) in enumerate(series)), reverse=True)
    room = (bottom - top) // 15
    parts = [text(x + width, top - 4, "Max", "axis", "end")]
    for row, (value, number, name) in enumerate(rows[:room if len(rows) <= room else room - 1]):
        y, shown = top + 12 + row * 15, formatted(value, unit)
        parts.append(f'<rect x="{x}" y="{y - 5}" width="10" height="3" fill="{COLORS[-number % len(COLORS)]}"/>')
        parts.append(text(x + 14, y, shortened(name, width - 22 - len(shown) * SMALL, SMALL), "axis"))
        parts.append(text(x + width, y, shown, "axis", "end"))
    if len(rows) > room:
        parts.append(text(x + 14, top + 12 + (room - 1) * 15, f"{len(rows) - room + 1} more", "axis"))
    return parts

def draw_lines(panel, series, box, span, step):
    """A panel with lines. `series` are a name and points; `span` is the number of seconds shown."""
    x, y, width, height = box
    defaults = panel["fieldConfig"]["defaults"]
    unit, stacking = defaults["unit"], defaults["custom"]["stacking"]["mode"] == "normal"
    series = [(name, [(at, value) for at, value in points if math.isfinite(value)]) for name, points in series]
    shown = stacked(series) if stacking else series
    beside = min(230, width // 2) if panel["options"]["legend"]["placement"] == "right" else 0
    if beside:
        parts, used = table(series, unit, x + width - beside - 4, y + 36, y + height - 8, beside - 8), 0
    else:
        parts, used = legend(series, x + 10, y + height - 8, width - 20)
    values = [value for _, points in shown for _, value in points]
    marks = ticks(max(values, default=0), unit, defaults.get("decimals"))
    left, top = x + 62, y + 32
    right, bottom = x + width - 22 - beside, y + height - used - 24
    for mark in marks:
        level = bottom - mark / marks[-1] * (bottom - top)
        parts.append(f'<path class="grid" d="M{left} {level:.0f}H{right}"/>')
        parts.append(text(left - 6, level + 4, formatted(mark, unit, marks[-1]), "axis", "end"))
    every = next(n for n in (60, 120, 300, 600, 3600) if span / n * 40 <= right - left)
    for at in range(0, int(span) + 1, every):
        parts.append(text(left + at / span * (right - left), bottom + 15, f"{at // 60} min", "axis", "middle"))
    if not values:
        parts.append(text((left + right) / 2, (top + bottom) / 2, "No data", "axis", "middle"))
    drawn = list(enumerate(shown))
    for number, (_, points) in reversed(drawn) if stacking else drawn:
        places = [(at, round(left + at / span * (right - left)), round(bottom - value / marks[-1] * (bottom - top)))
                  for at, value in points]
        line, dots = path_of(places, step)
        color = COLORS[number % len(COLORS)]
        if line and stacking:
            parts.append(f'<path fill="{color}" fill-opacity=".15" d="{line}V{bottom}H{places[0][1]}z"/>')
        if line:
            parts.append(f'<path class="line" stroke="{color}" d="{line}"/>')
        # As `auto` in Grafana: a point without neighbours is no line.
        if defaults["custom"]["showPoints"] != "never":
            parts += [f'<circle cx="{a}" cy="{b}" r="2" fill="{color}"/>' for a, b in dots]
    return parts

def draw_number(panel, series, box):
    x, y, width, height = box
    defaults = panel["fieldConfig"]["defaults"]
    if not series:
        return [text(x + width / 2, y + height / 2 + 10, "No data", "axis", "middle")]
    value, color = series[0][1], "green"
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    return [text(x + width / 2, y + height / 2 + 26, formatted(value, defaults["unit"]), "number", "middle", THRESHOLDS[color])]

def title_lines(content, width):
    lines = [""]
    for word in content.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width / LETTER:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines

def draw(dashboard, answers, span, step, caption):
    """The SVG. `answers` has the series of each panel by its place in the list."""
    panels = dashboard["panels"]
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels) * ROW + 2 * EDGE + 40
    width = 24 * COLUMN + 2 * EDGE
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="\'DejaVu Sans\', Verdana, Arial, sans-serif" '
             'role="img" aria-labelledby="title desc">', "<!-- SPDX-License-Identifier: Apache-2.0 -->",
             f'<title id="title">{html.escape(dashboard["title"])}</title>', f'<desc id="desc">{html.escape(caption)}</desc>',
             f"<style>{STYLE}</style>", f'<rect class="board" width="{width}" height="{height}"/>',
             text(EDGE + 4, EDGE + 14, dashboard["title"], "row"), text(width - EDGE - 4, EDGE + 14, caption, "axis", "end")]
    for number, panel in enumerate(panels):
        place = panel["gridPos"]
        x, y = EDGE + place["x"] * COLUMN, EDGE + 30 + place["y"] * ROW
        if panel["type"] == "row":
            parts.append(text(x + 4, y + 24, panel["title"], "row"))
            continue
        box = (x + GAP // 2, y + GAP // 2, place["w"] * COLUMN - GAP, place["h"] * ROW - GAP)
        parts.append(f'<rect class="panel" x="{box[0]}" y="{box[1]}" width="{box[2]}" height="{box[3]}" rx="3"/>')
        for row, line in enumerate(title_lines(panel["title"], box[2] - 20)):
            parts.append(text(box[0] + 10, box[1] + 18 + row * 15, line, "title"))
        parts += draw_number(panel, answers[number], box) if panel["type"] == "stat" else draw_lines(panel, answers[number], box, span, step)
    return "\n".join([*parts, "</svg>", ""])

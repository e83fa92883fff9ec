# SPDX-License-Identifier: Apache-2.0
"""The recorded metrics, and a Prometheus that answers the queries of dashboards from them."""
import bisect, collections, contextlib, gzip, json, math, os, pathlib, re, socket, subprocess, tempfile, time, urllib.error
import urllib.parse, urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "guest/prometheus"
# Recordings of one node each: one with faults, and a calm one. Lines `SERIES TIME VALUE`: OpenMetrics without its comments.
# TIME is in seconds since the first scrape, and a value that did not change since the last scrape is not repeated.
FOLDER = ROOT / "integration/recordings"
FAULTS, CALM = FOLDER / "metrics-faults.gz", FOLDER / "metrics-calm.gz"
INTERVAL = 5
# Not a multiple of INTERVAL: no sample is at the edge of a range, where versions of Prometheus differ.
BEGIN = 1_800_000_002.5
# The fleet: how many nodes have faults, and how many have none. Each is SHIFT seconds behind the one before.
WITH_FAULTS, WITHOUT, SHIFT = 3, 17, 5
LABELS = {"job": "kube-proxy", "variant": "base"}
# Prometheus takes seconds to start on a slow machine.
PATIENCE = 60

def names_of(queries):
    """The metrics that queries use."""
    return set(re.findall(r"\b(?:up|(?:kube_ipvs|kubeproxy|process|rest_client)_\w+)\b", "\n".join(queries)))

def import_scrapes(path, recording, queries):
    """Makes a recording of the output of record_metrics: only what the queries need, without Services that were idle."""
    wanted, series, begin, count = names_of(queries), {}, None, 0
    for scrape in path.read_text().split("# scrape ")[1:]:
        head, _, body = scrape.partition("\n")
        begin = float(head) if begin is None else begin
        # To the interval: the recorder was late by some milliseconds.
        now = round((float(head) - begin) / INTERVAL) * INTERVAL
        lines = [line for line in body.splitlines() if line and not line.startswith("#")]
        for line in [f"up {int(bool(lines))}", *lines]:
            name, value = line.rsplit(" ", 1)
            if re.match(r"\w+", name)[0] in wanted:
                series.setdefault(name, {})[now] = value
        count += 1
    times = range(0, count * INTERVAL, INTERVAL)
    with recording.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for name, values in sorted(series.items()):
            if name.startswith("kube_ipvs_service_") and set(values.values()) == {"0"}:
                continue
            last = None
            for now in times:
                value = values.get(now, "end")
                if value != last and (last, value) != (None, "end"):
                    file.write(f"{name} {now} {value}\n".encode())
                last = value
        file.write(f"# {count}\n".encode())

def load(recording):
    """A recording: the values of each series at each scrape, None before it began and after it ended."""
    changes, count = collections.defaultdict(list), 0
    for line in gzip.decompress(recording.read_bytes()).decode().splitlines():
        if line.startswith("# "):
            count = int(line[2:])
        else:
            name, now, value = line.rsplit(" ", 2)
            changes[name].append((int(now) // INTERVAL, None if value == "end" else value))
    series = {}
    for name, steps in changes.items():
        indexes = [index for index, _ in steps]
        found = [bisect.bisect(indexes, number) - 1 for number in range(count)]
        series[name] = [None if at < 0 else steps[at][1] for at in found]
    return series, count

def placed(name, instance):
    """A series with the labels that Prometheus adds to it."""
    added = ",".join(f'{key}="{value}"' for key, value in {**LABELS, "instance": instance}.items())
    name, _, labels = name.partition("{")
    return f"{name}{{{added}{',' if labels else ''}{labels or '}'}"

def exposition(nodes):
    """OpenMetrics of nodes: for each the series, and how many scrapes later it has what was recorded."""
    families = collections.defaultdict(list)
    for instance, (series, shift) in nodes.items():
        for name, values in series.items():
            # Without a type a sample is of no histogram, so each name is a family.
            families[name.partition("{")[0]].append((placed(name, instance), values, shift))
    for family, members in sorted(families.items()):
        yield f"# TYPE {family} unknown\n"
        for name, values, shift in members:
            yield from (f"{name} {value} {BEGIN + (number + shift) * INTERVAL}\n"
                        for number, value in enumerate(values) if value is not None)
    yield "# EOF\n"

class Prometheus:
    """Answers queries. `begin` and `end` are the seconds that every node has data for."""
    def __init__(self, address, begin, end):
        self.address, self.begin, self.end = address, begin, end

    def ask(self, path, **options):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(options, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error).get("error", str(error))) from error

    def range(self, query):
        """Labels and points (seconds since the begin, value) of each series. Of equal series `topk` of Prometheus takes any,
        this one the first by their labels."""
        match = re.fullmatch(r"topk\((\d+), (.*)\)", query)
        series = self.every(match[2] if match else query)
        if not match:
            return series
        ranks = collections.defaultdict(list)
        for number, (_, points) in enumerate(series):
            for at, value in points:
                # As in Prometheus, no number is less than any.
                ranks[at].append((1, 0, number) if math.isnan(value) else (0, -value, number))
        top = {(at, number) for at, rank in ranks.items() for _, _, number in sorted(rank)[:int(match[1])]}
        kept = [(labels, [(at, value) for at, value in points if (at, number) in top]) for number, (labels, points) in enumerate(series)]
        return [(labels, points) for labels, points in kept if points]

    def every(self, query):
        data = self.ask("query_range", query=query, start=self.begin, end=self.end, step=INTERVAL)
        # The order of a sum changes the last digits.
        series = [(row["metric"], [(at - self.begin, float(f"{float(value):.9g}")) for at, value in row["values"]])
                  for row in data["result"]]
        return sorted(series, key=lambda one: sorted(one[0].items()))

    def instant(self, query):
        data = self.ask("query", query=query, time=self.end)
        return [(row["metric"], float(row["value"][1])) for row in data["result"]]

    def label_values(self, selector, label):
        return self.ask(f"label/{label}/values", start=self.begin, end=self.end, **{"match[]": selector})

def variables(dashboard, prometheus):
    """What Grafana puts in the place of the variables, as they are when the dashboard is opened."""
    # The largest of four scrapes, and of one scrape and a step.
    known = {"__rate_interval": f"{4 * INTERVAL}s", "__interval": f"{INTERVAL}s", "__range": f"{prometheus.end - prometheus.begin:.0f}s"}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            continue
        selector, label = re.fullmatch(r"label_values\((.*), *(\w+)\)", variable["query"]["query"]).groups()
        values = prometheus.label_values(substitute(selector, known), label)
        every = variable.get("allValue") or "|".join(values)
        known[variable["name"]] = every if variable.get("includeAll") else next(iter(values), "")
    return known

def substitute(query, known):
    for name in sorted(known, key=len, reverse=True):
        query = query.replace(f"${{{name}}}", known[name]).replace(f"${name}", known[name])
    return query

def run(command):
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(f"dashboards: {' '.join(map(str, command[:3]))}: {out.stdout}{out.stderr}")

@contextlib.contextmanager
def prometheus(fleet):
    """A Prometheus with one node, or with a fleet."""
    if not (TOOLS / "prometheus").is_file():
        raise SystemExit(f"dashboards: no {TOOLS}/prometheus: run integration/guest/install.sh --promtool")
    (faults, last), (calm, _) = load(FAULTS), load(CALM)
    nodes, first = {"node-a": (faults, 0)}, 0
    if fleet:
        kinds = [faults] * WITH_FAULTS + [calm] * WITHOUT
        nodes = {f"node-{number + 1:02}": (series, number * SHIFT // INTERVAL) for number, series in enumerate(kinds)}
        first = (len(kinds) - 1) * SHIFT // INTERVAL
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        metrics, config, log = (pathlib.Path(folder, name) for name in ("metrics", "config", "log"))
        with metrics.open("w") as file:
            file.writelines(exposition(nodes))
        config.write_text("{}")
        run([TOOLS / "promtool", "tsdb", "create-blocks-from", "openmetrics", metrics, folder + "/tsdb"])
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        probe.close()
        with log.open("w") as output:
            process = subprocess.Popen([TOOLS / "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb",
                # As if Prometheus had seen where a series ends.
                f"--query.lookback-delta={2 * INTERVAL}s",
                "--storage.tsdb.retention.time=100y", f"--web.listen-address={address}", "--log.level=warn"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            wait(process, address, log)
            # Half an interval later, a query sees each scrape once.
            late = BEGIN + INTERVAL / 2
            yield Prometheus(address, late + first * INTERVAL, late + (last - 1) * INTERVAL)
        finally:
            process.terminate()
            process.wait()

def wait(process, address, log):
    start = time.monotonic()
    while process.poll() is None and time.monotonic() - start < PATIENCE:
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(f"http://{address}/-/ready", timeout=PATIENCE).status == 200:
                return
        time.sleep(0.05)
    raise SystemExit(f"dashboards: Prometheus does not start: {log.read_text()}")

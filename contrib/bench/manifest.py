"""How fast Compose files are read, in files a second and core, and as a ratio to what PyYAML takes for parsing alone. Goal: 50 files/s.

    python contrib/bench/manifest.py [FOLDER]

Reads the catalog that comes along, and one large file; or the Compose files of a folder. Each figure is the best of five rounds,
which alternate.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from fractal.builtin.folder import BUNDLED
from fractal.manifest import check
from fractal.manifest.report import report

GOAL = 50.0
ROUNDS = 5
SERVICES = 40


def large() -> str:
    """As much as the largest files that people write: many services with anchors, defaults and long lists."""
    service = """
  s{n}:
    <<: *base
    image: registry.example.org/team/service-{n}:1.{n}
    environment:
      - DATABASE_URL=postgres://${{DB_USER:-app}}:${{DB_PASSWORD}}@db:5432/${{DB_NAME:-app}}
      - WORKERS=${{WORKERS:-${{CPUS:-4}}}}
      - PRICE=5$$
    ports: ["{port}:{port}", "127.0.0.1:1{n:03d}:9000/udp"]
    volumes: ["data{n}:/data", "./conf/{n}:/etc/service:ro"]
    healthcheck: {{test: [CMD-SHELL, "curl -f http://localhost:{port}/health"], interval: 30s}}
    depends_on: {{db: {{condition: service_healthy}}}}
"""
    head = (
        "x-base: &base\n  restart: unless-stopped\n  logging: {driver: json-file, options: {max-size: 10m}}\n"
    )
    database = "  db: {image: 'postgres:17', healthcheck: {test: [CMD, pg_isready]}}\n"
    services = "".join(service.format(n=n, port=3000 + n) for n in range(SERVICES))
    volumes = "volumes:\n" + "".join(f"  data{n}:\n" for n in range(SERVICES))
    return f"{head}services:{services}{database}{volumes}"


def seconds(work: Callable[[str], object], texts: list[str]) -> float:
    """Of processor time for all."""
    begun = time.process_time()
    for text in texts:
        work(text)
    return time.process_time() - begun


def whole(text: str) -> None:
    """All that `app check` does."""
    report(check(text))


def main() -> int:
    """Print a table; 1 if the goal is missed."""
    import yaml

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else BUNDLED
    kinds = {
        f"{folder.name}": [p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.y*ml"))],
        f"{SERVICES} services": [large()],
    }
    best = {(kind, work): float("inf") for kind in kinds for work in ("yaml", "check")}
    for _ in range(ROUNDS):
        for kind, texts in kinds.items():
            best[kind, "yaml"] = min(best[kind, "yaml"], seconds(yaml.safe_load, texts))
            best[kind, "check"] = min(best[kind, "check"], seconds(whole, texts))
    print(f"{'':16} {'files':>5} {'kB':>6} {'files/s':>8} {'to PyYAML alone':>16}   goal")
    for number, (kind, texts) in enumerate(kinds.items()):
        rate = len(texts) / best[kind, "check"]
        size = sum(map(len, texts)) / 1000
        goal = f">= {GOAL:g}/s" if number == 0 else ""
        ratio = best[kind, "check"] / best[kind, "yaml"]
        print(f"{kind:16} {len(texts):5} {size:6.1f} {rate:8.1f} {ratio:16.2f}   {goal}".rstrip())
    return int(len(kinds[folder.name]) / best[folder.name, "check"] < GOAL)


if __name__ == "__main__":
    sys.exit(main())

"""`knltrain doctor`: what is wrong with these nodes, before a long job finds out. Alone, under mpiexec or under srun.

facts.py    what a rank reads of itself and its node         measure.py  rates: arithmetic, memory, shards, network
checks.py   what all of it means, and what to do
"""

import json
import time
from dataclasses import asdict

from ..claims.text import printable
from ..node.leaks import sweep
from ..node.machine import take_share
from ..tell.screen import placement_lines
from .checks import OK, WRONG, examine
from .facts import gather_facts
from .measure import examine_data, measure_network, measure_node

__all__ = ["doctor"]


def doctor(comm, *, data=None, as_json: bool = False) -> int:
    """Print a table of findings on rank 0 (or one JSON object); returns on all ranks 1 if something is wrong, else 0.

    data: a folder of shards to look into.
    """
    begin = time.perf_counter()
    placement = take_share(comm)
    if placement.first_on_node:
        sweep()
    facts = gather_facts(comm, placement) | measure_node(comm) | measure_network(comm)
    if data is not None:
        facts |= examine_data(data, comm)
    ranks = comm.gather(facts)
    findings = examine(ranks)
    wrong = sum(finding.level == WRONG for finding in findings)
    if comm.rank == 0:
        if as_json:
            found = {"wrong": wrong, "findings": [finding._asdict() for finding in findings], "ranks": ranks}
            print(json.dumps(found))
        else:
            for finding in findings:
                print(f"{finding.level:5}  {finding.check:13}  {printable(finding.found)}")
                if finding.cure and finding.level != OK:
                    print(f"       {'':13}  -> {printable(finding.cure)}")
            for line in placement_lines(asdict(placement)):
                print(f"       {line}")
            seconds = time.perf_counter() - begin
            print(f"{wrong} wrong, {len(findings)} findings on {comm.size} ranks in {seconds:.1f} s")
    return int(wrong > 0)

from bed import Bed, until
import time
def test_first(bed: Bed) -> None:
    t=time.monotonic()
    kitchen, attic = bed.group("Kitchen", "Attic")
    print("group", time.monotonic()-t)
    ledger = bed.install(kitchen)
    print("installed", time.monotonic()-t)
    for _ in range(5): ledger.add(kitchen)
    m = ledger.save(kitchen)
    assert ledger.at(kitchen, m) == 5
    print("forked", time.monotonic()-t)
    kitchen.kill_everything()
    ledger.wait_for(attic)
    print("taken", time.monotonic()-t)
    assert ledger.lines(attic) == list(range(5))
    ledger.never_twice()

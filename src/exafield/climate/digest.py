"""What a study of storms found, in lines to print."""

from collections.abc import Iterator

from exafield.climate import basins, clock
from exafield.climate.clock import SEASONS
from exafield.climate.fields import CLASSES, CYCLONE, RIVER
from exafield.climate.masks import Fields, Masks, nowhere
from exafield.climate.study import Study
from exafield.suggestion import counted

# By what is measured: the fields that it takes, one set or another.
_NEEDS = {
    "wind": (("UBOT", "VBOT"), ("U850", "V850")),
    "pressure": (("PSL",),),
    "precipitation": (("PRECT",),),
    "transport of vapour": (("IVT",), ("TMQ", "U850", "V850")),
}
_WIDTH = 27


def digest(study: Study, masks: Masks, fields: Fields | None, taken: int) -> Iterator[str]:
    """Lines: what was gone through, what it was measured by, and tables of counts and shares."""
    size = " x ".join(map(str, masks.grid.shape))
    first, last = clock.text(masks.times[0]), clock.text(masks.times[-1])
    yield f"{taken} of {counted(len(masks), 'snapshot')}, {first} to {last}, {size} cells"
    for kind in (CYCLONE, RIVER):
        followed, lasting = study.followed[kind], study.lasting[kind]
        enough = "" if lasting == followed else f", {lasting} of which last long enough to count"
        yield f"{CLASSES[kind]}: events {study.seen[kind]}, tracks {followed}{enough}"
    if fields is None:
        yield f"without fields, {', '.join(_NEEDS)} are not known"
    else:
        yield f"measured by {', '.join(fields.channels)}"
        for what, needed in _NEEDS.items():
            if any(set(names) <= set(fields.channels) for names in needed):
                continue
            yield f"{what}: not known, which takes {' or '.join(' and '.join(names) for names in needed)}"
            # That a channel is nowhere is said already; that it may be one of several, or at no level, is worth a line.
            reasons = {fields.absent[name] for names in needed for name in names if name in fields.absent}
            yield from (f"  {reason}" for reason in sorted(reasons) if not nowhere(reason))
    rows = study.counts()
    if rows:
        yield ""
        yield f"{'tracks that began in':{_WIDTH}s}" + "".join(f"{name:>7s}" for name in (*basins.BASINS, "all"))
    for kind in (CYCLONE, RIVER):
        for season in SEASONS:
            own = [row for row in rows if (row.kind, row.season) == (kind, season)]
            number = [sum(row.tracks for row in own if row.basin == basin) for basin in basins.BASINS]
            if own:
                head = f"{CLASSES[kind]}, {season}"
                yield f"{head:{_WIDTH}s}" + "".join(f"{value:7d}" for value in (*number, sum(number)))
    shares = study.shares()
    if shares:
        yield ""
        yield f"{'share of precipitation in':{_WIDTH}s}" + "".join(f"{row.basin:>7s}" for row in shares)
        for kind, name in ((CYCLONE, "cyclone_share"), (RIVER, "river_share")):
            yield f"{CLASSES[kind]:{_WIDTH}s}" + "".join(f"{getattr(row, name):7.1%}" for row in shares)
    if rows or shares:
        yield ""
        yield basins.LEGEND

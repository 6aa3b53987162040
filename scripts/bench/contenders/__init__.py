"""Everyone who can take part."""

from __future__ import annotations

from graft.scripts.bench.contenders.async_peers import Arq, Taskiq, TaskiqOne
from graft.scripts.bench.contenders.base import Contender
from graft.scripts.bench.contenders.inprocess import Joblib, MultiprocessingPool, OneByOne, PlainAsyncio, ProcessPool
from graft.scripts.bench.contenders.ours import Graft, GraftCpu, GraftIo, GraftPool, GraftPrefork
from graft.scripts.bench.contenders.peers import Dask, Dramatiq, Huey, Ray, Rq
from graft.scripts.bench.contenders.programs import GraftPreforkPrograms, GraftPrograms, StockPrograms
from graft.scripts.bench.contenders.stock import Chunks, HardenedCelery, HardenedPrefork, OneProcess, Solo, StockCelery
from graft.scripts.bench.contenders.yardsticks import BareLoop, BatchedLoop, Loop

CONTENDERS: dict[str, type[Contender]] = {
    contender.name: contender
    for contender in (
        Graft,
        GraftPrefork,
        GraftIo,
        GraftCpu,
        GraftPool,
        StockCelery,
        HardenedCelery,
        HardenedPrefork,
        OneProcess,
        Solo,
        Chunks,
        Loop,
        BatchedLoop,
        BareLoop,
        ProcessPool,
        MultiprocessingPool,
        Joblib,
        PlainAsyncio,
        OneByOne,
        GraftPrograms,
        GraftPreforkPrograms,
        StockPrograms,
        Dramatiq,
        Taskiq,
        TaskiqOne,
        Huey,
        Rq,
        Arq,
        Dask,
        Ray,
    )
}

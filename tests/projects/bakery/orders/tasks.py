"""Found by ``autodiscover_tasks``."""

from __future__ import annotations

import os

from celery import shared_task

from tests.projects.bakery.orders.models import Order


@shared_task
def bake(order_id: int) -> int:
    order = Order.objects.get(pk=order_id)
    order.is_baked = True
    order.save()
    return order.loaves


@shared_task
def crash(order_id: int) -> None:
    os._exit(1)

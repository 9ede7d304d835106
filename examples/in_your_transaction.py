"""Adds a job in the transaction that writes the data it is about: both are there, or neither.

DATABASE_URL=postgresql://… python examples/in_your_transaction.py
"""

import asyncio
import os

import asyncpg

from backfill import BackfillClient


async def place_order(pool: asyncpg.Pool, client: BackfillClient, customer: str, amount: int) -> int:
    async with pool.acquire() as connection, connection.transaction():
        order_id: int = await connection.fetchval(
            "insert into example_orders (customer, amount) values ($1, $2) returning id", customer, amount
        )
        await client.enqueue("send_receipt", {"order": order_id}, connection=connection)
        if amount <= 0:
            raise ValueError(f"order {order_id} is for nothing")
        return order_id


async def main() -> None:
    async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as pool, BackfillClient(pool) as client:
        await pool.execute("create table if not exists example_orders (id serial, customer text, amount int)")
        order = await place_order(pool, client, "c-1", 80)
        print("placed order", order)
        try:
            await place_order(pool, client, "c-2", 0)
        except ValueError as error:
            print("refused:", error)
        receipts = [job.payload for job in await client.list_jobs(task="send_receipt")]
        print("receipts to send:", receipts)


asyncio.run(main())

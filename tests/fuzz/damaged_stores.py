"""Damage to a SQLite file by one who knows its pages, or its SQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from random import Random

from damaged import damaged_bytes


def damaged_pages(rng: Random, data: bytes, page: int = 4096) -> tuple[bytes, str]:
    """A database with a page's header, its cell pointers, its bytes or its place changed."""
    copy = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        start = rng.randrange(max(1, len(copy) // page)) * page
        begin = start + (100 if start == 0 else 0)
        match rng.randrange(6):
            case 0:
                return damaged_bytes(rng, data, 100)
            case 1:  # type, free block, number of cells, their start
                copy[begin + rng.randrange(12)] = rng.choice((0, 1, 2, 5, 10, 13, 255, rng.randrange(256)))
            case 2:
                place = begin + 8 + 2 * rng.randrange(20)
                copy[place : place + 2] = rng.randrange(65536).to_bytes(2, "big")
            case 3:
                other = rng.randrange(max(1, len(copy) // page)) * page
                copy[start : start + page] = copy[other : other + page]
            case 4:
                for _ in range(rng.choice((1, 8, 200))):
                    copy[min(len(copy) - 1, start + rng.randrange(page))] = rng.randrange(256)
            case _:
                copy[start : start + page] = bytes(page)
    return bytes(copy), "pages"


STATEMENTS = (
    "DROP TABLE {table}",
    "DELETE FROM meta",
    "ALTER TABLE {table} ADD COLUMN more TEXT DEFAULT 'x'",
    "ALTER TABLE {table} RENAME TO other",
    "UPDATE meta SET value = {value}",
    "UPDATE {table} SET key = {value}",
    "UPDATE cells SET result = {value}",
    "UPDATE cells SET digest = {value}, spec = {value}",
    "UPDATE plan SET spec = {value}",
    "UPDATE failures SET error = {value}, attempts = {value}",
    "INSERT INTO plan VALUES ('k', {value}, {value})",
    "INSERT INTO failures VALUES ({value}, {value}, {value}, {value})",
    "INSERT INTO cells VALUES ({value}, {value}, {value}, {value}, {value})",
    "PRAGMA user_version = {number}",
    "PRAGMA application_id = {number}",
    "ALTER TABLE cells RENAME TO real; CREATE VIEW cells AS WITH RECURSIVE n(i) AS (VALUES(0) UNION ALL "
    "SELECT i + 1 FROM n) SELECT CAST(i AS TEXT) key, 's' spec, 'r' result, 'd' digest, 'w' w FROM n",
    "DROP TABLE {table}; CREATE VIEW {table} AS SELECT 'a' key, 'b' spec, 'c' result, 'd' digest, 1 value, "
    "'writer' name",
    "CREATE TRIGGER t AFTER UPDATE ON meta BEGIN DELETE FROM cells; END",
    "CREATE TRIGGER t AFTER UPDATE ON meta BEGIN UPDATE meta SET value = (WITH RECURSIVE n(i) AS (VALUES(0) "
    "UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n); END",
    "CREATE TRIGGER t AFTER INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END",
    "DROP TABLE {table}; CREATE TABLE {table} (key TEXT, spec AS (zeroblob(1000000000)), result TEXT, "
    "digest TEXT)",
    "CREATE INDEX odd ON cells (abs(randomblob(9)))",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = {value} WHERE name = '{table}'",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET rootpage = {number}",
    "PRAGMA writable_schema = 1; UPDATE sqlite_master SET type = 'view' WHERE name = '{table}'",
)
VALUES = (
    "NULL",
    "1",
    "-9223372036854775808",
    "9e999",
    "x'ff00ff'",
    "CAST(x'ff80' AS TEXT)",
    "''",
    "'{}'",
    "'[]'",
    "'null'",
    "'{\"spec\": 5}'",
    "zeroblob(100000)",
    "char(0)",
    "printf('%.50000c', '[')",
    "'a' || char(10) || 'b'",
    "'{\"self\": 1}'",
)


def damaged_tables(rng: Random, data: bytes) -> tuple[bytes, str]:
    """A database that SQLite itself has changed: other tables, views, triggers, values of other types."""
    words = {"table": rng.choice(("cells", "plan", "failures", "meta")), "value": rng.choice(VALUES),
             "number": rng.choice((0, 1, 2, -1, 2**31 - 1))}  # fmt: skip
    statement = rng.choice(STATEMENTS)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.deserialize(data)
        with suppress(sqlite3.Error):  # such as two keys that would be the same
            for part in statement.split("; ") if "TRIGGER" not in statement else [statement]:
                for name, value in words.items():
                    part = part.replace("{" + name + "}", str(value))
                db.execute(part)
        return db.serialize(), statement[:60]

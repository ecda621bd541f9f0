-- The tables of the application in examples/lottery; it would have the same ones without an outbox.

CREATE SCHEMA lottery;

CREATE TABLE lottery.draws (
    draw         text PRIMARY KEY,
    tickets_sold bigint NOT NULL DEFAULT 0
);

CREATE TABLE lottery.tickets (
    ticket         bigint PRIMARY KEY,
    draw           text NOT NULL REFERENCES lottery.draws,
    number_in_draw bigint NOT NULL,
    numbers        text NOT NULL,
    UNIQUE (draw, number_in_draw)
);

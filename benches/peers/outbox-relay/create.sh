#!/bin/sh
exec "$RELAY" migrate

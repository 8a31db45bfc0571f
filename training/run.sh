#!/bin/sh
# SPDX-License-Identifier: MIT
# Trains in the background, or goes on with what was begun; stop it with: kill $(cat run/pid)
cd "$(dirname "$0")" || exit 1
mkdir -p run
if [ -f run/pid ] && kill -0 "$(cat run/pid)" 2>/dev/null; then
    echo "it runs already: process $(cat run/pid)" >&2
    exit 1
fi
setsid nohup nice -n 19 "${PYTHON:-python3}" -u train.py --out run --steps "${STEPS:-9000}" >>run/train.log 2>&1 &
echo $! >run/pid

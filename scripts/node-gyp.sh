#!/bin/sh
# prebuildify drives node-gyp; this stands in for it and drives cmake-js. node-gyp's arguments mean nothing to cmake-js.
exec cmake-js compile

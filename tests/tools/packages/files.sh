# Manual pages, completions and the unit, as Debian's package has them; sourced by ../package-check.sh.

check_files() {
    there=$run/files
    dpkg-deb -x "$deb" "$there"
    manual_pages
    completions
    # The unit names the program where the package puts it; here that is below a folder.
    unit=$there/usr/lib/systemd/system/outbox-relay.service
    grep -qx 'ExecStart=/usr/bin/outbox-relay run' "$unit" || fail "the unit does not start /usr/bin/outbox-relay"
    sed -i "s|^ExecStart=/usr/bin|ExecStart=$there/usr/bin|" "$unit"
    logged unit systemd-analyze --man=no verify "$unit"
    [ ! -s "$work/unit.log" ] || fail "systemd-analyze verify warns" "$work/unit.log"
    say unit "verified by systemd-analyze"
    rm -rf "$there"
}

manual_pages() {
    pages=0
    for page in "$there"/usr/share/man/man1/*.gz; do
        man --warnings --local-file -Tutf8 "$page" >"$run/page" 2>"$run/warnings" </dev/null || fail "man cannot read $page" "$run/warnings"
        [ ! -s "$run/warnings" ] || fail "groff warns of $page" "$run/warnings"
        grep -q NAME "$run/page" || fail "$page renders to nothing"
        pages=$((pages + 1))
    done
    # A page for each command that the help names.
    for command in $("$there/usr/bin/outbox-relay" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' | grep -v '^help$'); do
        found=$(MANPATH=$there/usr/share/man man -w "outbox-relay-$command" 2>/dev/null || :)
        [ -n "$found" ] || fail "man finds no page outbox-relay-$command"
    done
    say man "$pages pages, one for each command, rendered without a warning"
}

completions() {
    bash=$there/usr/share/bash-completion/completions/outbox-relay
    bash -n "$bash" || fail "bash cannot read its completions"
    bash -c ". '$bash' && complete -p outbox-relay" >/dev/null || fail "bash completes nothing of outbox-relay"
    # What follows `outbox-relay mig` and a tabulator.
    # shellcheck disable=SC2016
    offered=$(bash -c '. "$1"
        COMP_WORDS=(outbox-relay mig) COMP_CWORD=1 COMP_LINE="outbox-relay mig" COMP_POINT=16
        $(complete -p outbox-relay | sed "s/.*-F \([^ ]*\).*/\1/") outbox-relay mig outbox-relay
        echo "${COMPREPLY[*]}"' bash "$bash" 2>&1)
    [ "$offered" = migrate ] || fail "bash completes 'outbox-relay mig' to '$offered'"
    zsh -n "$there/usr/share/zsh/vendor-completions/_outbox-relay" || fail "zsh cannot read its completions"
    offered=$(HOME=$run fish -c "source '$there/usr/share/fish/vendor_completions.d/outbox-relay.fish'; complete -C 'outbox-relay mig'" |
        cut -f 1)
    [ "$offered" = migrate ] || fail "fish completes 'outbox-relay mig' to '$offered'"
    say completion "bash and fish complete 'outbox-relay mig' to migrate; zsh reads its file"
}

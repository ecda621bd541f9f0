# The Debian package; sourced by ../package-check.sh.

# Tags of lintian that are accepted:
#   no-changelog, wrong-name-for-upstream-changelog    there is CHANGELOG.md, and none in the format of Debian's own packages
#   unstripped-binary-or-object                        symbols stay, so that a backtrace has names (profile.release)
#   non-standard-file-perm                             settings may hold keys, so only root reads them
accepted=no-changelog,wrong-name-for-upstream-changelog,unstripped-binary-or-object,non-standard-file-perm

check_deb() {
    depends=$(dpkg-deb -f "$deb" Depends)
    for one in $(echo "$depends" | sed 's/([^)]*)//g; s/,/ /g'); do
        case $one in
        libc6 | libgcc-s1) ;;
        *) fail "the package depends on $one; the program should need the C library and libgcc only: $depends" ;;
        esac
    done
    for release in bookworm trixie; do
        there=$run/$release
        root "$release" "$there"
        deb_installs
        deb_keeps_settings
        deb_purges
        rm -rf "$there"
        say "$release" "installed ($depends), runs; an upgrade keeps changed settings; purge leaves only the user's own file"
    done
    lintian --fail-on error,warning --suppress-tags "$accepted" "$deb" >"$work/lintian.log" 2>&1 ||
        fail "lintian finds errors or warnings" "$work/lintian.log"
    say lintian "no errors and warnings besides $accepted"
}

# dpkg_ ARGUMENT…: in the root `there`, as an unattended upgrade does it.
dpkg_() { logged "dpkg-$release" chroot "$there" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive dpkg "$@"; }
inside() { chroot "$there" env -i PATH=/usr/bin:/bin HOME=/root "$@"; }

deb_installs() {
    (cd "$there" && find . -xdev ! -type d | sort) >"$run/before"
    cp "$deb" "$there/first.deb"
    cp "$next_deb" "$there/next.deb"
    dpkg_ -i /first.deb
    inside outbox-relay --version | grep -q "^outbox-relay $version" || fail "the installed program prints no version $version"
    inside outbox-relay migrate --print | grep -q 'CREATE TABLE outbox' || fail "the installed program prints no migrations"
    [ -z "$(inside dpkg --verify outbox-relay)" ] || fail "dpkg --verify finds changed files"
    [ "$(inside dpkg-query -W -f '${Status}' outbox-relay)" = "install ok installed" ] || fail "dpkg did not configure it"
    [ "$(inside stat -c '%U:%G %a' /etc/outbox-relay/environment)" = "root:root 640" ] ||
        fail "/etc/outbox-relay/environment is not root:root 640"
    inside dpkg-query -W -f '${Conffiles}' outbox-relay | grep -q /etc/outbox-relay/environment || fail "the settings are no conffile"
    if grep -qE '^[^#]' "$there/etc/outbox-relay/environment"; then fail "the example of settings sets something"; fi
    [ ! -e "$there/etc/systemd/system/multi-user.target.wants/outbox-relay.service" ] || fail "the installation enables the service"
}

deb_keeps_settings() {
    echo 'OUTBOX_RELAY_DESTINATIONS=audit=https://sqs.example/1/audit' >>"$there/etc/outbox-relay/environment"
    dpkg_ --force-confold -i /next.deb
    grep -q '^OUTBOX_RELAY_DESTINATIONS=audit' "$there/etc/outbox-relay/environment" || fail "an upgrade loses the user's settings"
    grep -q '=25ms$' "$there/etc/outbox-relay/environment.dpkg-dist" || fail "an upgrade does not show the new example"
    [ "$(inside stat -c %a /etc/outbox-relay/environment)" = 640 ] || fail "an upgrade changes the mode of the settings"
    # Settings that nobody touched are replaced.
    dpkg_ --purge outbox-relay
    dpkg_ -i /first.deb
    dpkg_ -i /next.deb
    grep -q '=25ms$' "$there/etc/outbox-relay/environment" || fail "an upgrade does not replace an untouched example"
}

deb_purges() {
    echo 'postgres://relay@db/lottery' >"$there/etc/outbox-relay/database-url"
    dpkg_ --remove outbox-relay
    [ -e "$there/etc/outbox-relay/environment" ] || fail "removing the package loses the settings"
    dpkg_ --purge outbox-relay
    rm "$there/first.deb" "$there/next.deb"
    left=$(cd "$there" && find . -xdev ! -type d ! -path './var/lib/dpkg/*' ! -path './var/log/*' ! -path './var/cache/*' | sort |
        comm -13 "$run/before" -)
    [ "$left" = ./etc/outbox-relay/database-url ] || fail "purge leaves: $left"
}

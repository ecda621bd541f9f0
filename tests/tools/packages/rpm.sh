# The RPM; sourced by ../package-check.sh.

# What Fedora, RHEL 9 and Amazon Linux 2023 provide with glibc, libgcc, rpm itself and a shell. The package itself provides
# its config(…).
provided='libc\.so\.6|libm\.so\.6|libgcc_s\.so\.1|ld-linux-[a-z0-9-]+\.so\.[0-9]|rtld\(GNU_HASH\)|rpmlib\(|/bin/sh|ca-certificates|config\(outbox-relay\)'

check_rpm() {
    requires=$(rpm -qp --requires "$rpm" 2>/dev/null | sort -u)
    unknown=$(echo "$requires" | grep -vE "^($provided)" || :)
    [ -z "$unknown" ] || fail "the RPM requires what Fedora, RHEL 9 and Amazon Linux 2023 may not provide: $unknown"
    echo "$requires" | grep -q 'libc\.so\.6' || fail "the RPM requires no C library: $requires"
    # RHEL 9 and Amazon Linux 2023 have glibc 2.34.
    newest=$(objdump -T target/release/outbox-relay | grep -oE 'GLIBC_[0-9.]+' | sed 's/GLIBC_//' | sort -uV | tail -n 1)
    [ "$(printf '%s\n2.34\n' "$newest" | sort -V | tail -n 1)" = 2.34 ] ||
        fail "the program needs glibc $newest; RHEL 9 and Amazon Linux 2023 have 2.34"

    there=$run/rpm
    # Only a file system with a shell and a C library: rpm's database is empty, so dependencies are not resolved by it.
    root bookworm "$there"
    rpm_ -i --nodeps "$rpm"
    chroot "$there" /usr/bin/outbox-relay --version | grep -q "^outbox-relay $version" || fail "the installed program prints no version"
    [ -z "$(rpm --root "$there" -V --nodeps outbox-relay)" ] || fail "rpm -V finds changed files"
    rpm --root "$there" -qc outbox-relay | grep -qx /etc/outbox-relay/environment || fail "the settings are no configuration file"
    [ "$(stat -c '%U:%G %a' "$there/etc/outbox-relay/environment")" = "root:root 640" ] || fail "the settings are not root:root 640"
    rpm_has_what_deb_has

    echo 'OUTBOX_RELAY_DESTINATIONS=audit=https://sqs.example/1/audit' >>"$there/etc/outbox-relay/environment"
    rpm_ -U --nodeps "$next_rpm"
    grep -q '^OUTBOX_RELAY_DESTINATIONS=audit' "$there/etc/outbox-relay/environment" || fail "an upgrade loses the user's settings"
    grep -q '=25ms$' "$there/etc/outbox-relay/environment.rpmnew" || fail "an upgrade does not show the new example"
    rpm_ -e outbox-relay
    grep -q '^OUTBOX_RELAY_DESTINATIONS=audit' "$there/etc/outbox-relay/environment.rpmsave" || fail "removal loses the user's settings"
    left=$(cd "$there" && find usr etc -name '*outbox-relay*' ! -type d)
    [ -z "$left" ] || fail "removal leaves $left"
    rm -rf "$there"
    say rpm "requires glibc $newest and libgcc only; installed, upgraded with the user's settings kept, removed"
}

rpm_() { logged rpm rpm --root "$there" "$@"; }

# The same files as Debian's package, besides places that differ by custom.
rpm_has_what_deb_has() {
    dpkg-deb -c "$deb" | awk '$1 !~ /^d/ { sub(/^\./, "", $6); print $6 }' |
        sed 's|/zsh/vendor-completions/|/zsh/site-functions/|; s|/doc/outbox-relay/LICENSE|/licenses/outbox-relay/LICENSE|
             /\/doc\/outbox-relay\/copyright$/d; s|^/lib/systemd|/usr/lib/systemd|' | sort >"$run/deb-files"
    rpm -qlp "$rpm" 2>/dev/null | sort >"$run/rpm-files"
    diff "$run/deb-files" "$run/rpm-files" >"$run/differences" || fail "the packages hold different files" "$run/differences"
}

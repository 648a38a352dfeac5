//! Stock `ctr`, of this year's containerd and of Debian 12's, against containerd-rs alone, with the exit codes and the words that stock containerd has
//! for it: every row was run on containerd 2.1.9 first.

use e2e_tests::containerd::{Containerd, REGISTRY};
use e2e_tests::{bin_dir, peer_dir};

/// Which `ctr` a row is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Both,
    New,
    Old,
}
use For::{Both, New, Old};

/// A script, how it ends, and what its output has in it. `$I` is the image, `ctr` the client, `$RUNC` and `$CRUN` are runtimes (see [`RUNTIMES`]).
type Row = (For, &'static str, i32, &'static str);

const IMAGES: &[Row] = &[
    (Both, "ctr namespaces create $NS-dev a=b && ctr namespaces ls", 0, "a=b"),
    (Both, "ctr namespaces create $NS-dev", 1, "already exists"),
    (Both, "ctr namespaces create 'bad name!'", 1, "must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"),
    (Both, "ctr namespaces label $NS-dev a= c=d && ctr namespaces ls", 0, "c=d"),
    (Both, "ctr namespaces remove $NS-dev && ctr namespaces ls -q | grep -c dev", 1, "0"),
    (
        New,
        "ctr image pull --plain-http $R/nosuch:1",
        1,
        "ctr: failed to resolve image: 127.0.0.1:5000/nosuch:1: not found",
    ),
    (
        Old,
        "ctr image pull --plain-http $R/nosuch:1",
        1,
        "failed to resolve reference \"127.0.0.1:5000/nosuch:1\"",
    ),
    (Both, "ctr image pull --plain-http $I && ctr image ls -q", 0, "127.0.0.1:5000/busybox:latest"),
    (Both, "ctr image ls name==$I", 0, "application/vnd.docker.distribution.manifest.v2+json"),
    (Both, "ctr image ls 'name=='", 1, "filters: parse error: [name==]: expected value or quoted"),
    (Both, "ctr image check", 0, "complete (2/2)"),
    (New, "ctr image inspect $I", 0, "application/vnd.docker.distribution.manifest.v2+json"),
    (Both, "ctr image tag $I $R/b:1", 0, "127.0.0.1:5000/b:1"),
    (Old, "ctr image tag $I $R/b:1", 1, "ctr: image \"127.0.0.1:5000/b:1\": already exists"),
    (Both, "ctr image tag --force $I $R/b:1", 0, "127.0.0.1:5000/b:1"),
    (Both, "ctr image tag nope $R/b:2", 1, "ctr: image \"nope\": not found"),
    (Both, "ctr image label $I x=y z=w && ctr image label $I x=", 0, "z=w"),
    (
        Both,
        "ctr image push --plain-http $R/b:1 && ctr image rm --sync $R/b:1 && ctr image pull --plain-http $R/b:1",
        0,
        "",
    ),
    (Both, "ctr image push --plain-http $R/b:3 nope", 1, "not found"),
    (Both, "ctr image rm --sync $R/b:1 && ctr image ls -q | wc -l", 0, "1"),
    (Both, "ctr image rm nope", 0, ""),
    (Both, "ctr image export o.tar $I && tar tf o.tar", 0, "manifest.json\noci-layout"),
    (Both, "ctr image export no.tar nope", 1, "image \"nope\": not found"),
    (New, "ctr image import --index-name whole:1 o.tar && ctr image ls -q", 0, "whole:1"),
    (New, "ctr image check name==whole:1 && ctr image rm --sync whole:1", 0, "complete (2/2)"),
    (Both, "ctr image rm --sync docker.io/library/busybox:latest", 0, ""),
    (Both, "echo junk > junk.tar; ctr image import junk.tar", 1, "unexpected EOF"),
    (
        Both,
        "mkdir -p m && ctr image mount $I m && ls m && ! touch m/x; ctr image unmount --rm m",
        0,
        "bin\netc\nhome\n",
    ),
    (Both, "ctr image mount $I", 1, "please provide a target path"),
    (
        Both,
        "ctr -n $NS-two content fetch --plain-http $I && ctr -n $NS-two image ls -q && ctr -n $NS-two snapshots ls | wc -l",
        0,
        "\n1\n",
    ),
    (New, "ctr -n $NS-two content prune references", 0, ""),
    (
        Both,
        "ctr -n $NS-two image rm --sync $I && ctr -n $NS-two content ls -q | wc -l && ctr namespaces rm $NS-two",
        0,
        "0\n",
    ),
    (
        Both,
        "ctr content get sha256:0000000000000000000000000000000000000000000000000000000000000000",
        1,
        "not found",
    ),
    (Both, "ctr content get zz", 1, "invalid checksum digest format"),
    (
        Both,
        "for d in $(ctr content ls -q); do [ sha256:$(ctr content get $d | sha256sum | cut -d' ' -f1) = $d ] && echo same; done",
        0,
        "same\nsame\nsame\n",
    ),
    (Both, "echo data | ctr content ingest --expected-size 5 --expected-digest $DATA one", 0, ""),
    (Both, "echo data | ctr content ingest --expected-size 6 two", 1, "unexpected EOF"),
    (Both, "echo date | ctr content ingest --expected-digest $DATA2 three", 1, "unexpected commit digest"),
    (Both, "ctr content active", 0, "REF"),
    (Both, "ctr content label $DATA foo=bar && ctr content ls -q labels.foo==bar", 0, "sha256:6667b2d1"),
    (Both, "ctr content rm $DATA && ctr content ls -q | grep -c 6667b2d1", 1, "0"),
];

/// The daemon itself.
const DAEMON: &[Row] = &[
    (Both, "ctr version", 0, "Server:\n  Version: "),
    (New, "ctr info | tr -d ' \n\"0-9'", 0, "{server:{uuid:"),
    (New, "ctr info | grep -c '\"pid\": '", 0, "1"),
    (New, "ctr deprecations list", 0, ""),
    (Both, "ctr plugins ls | grep -c ' ok '", 0, ""),
    (Both, "ctr plugins ls type==io.containerd.snapshotter.v1", 0, "overlayfs"),
    (Both, "ctr plugins ls -q | grep -cx io.containerd.runtime.v2.task || ctr plugins ls | grep -c 'runtime.v2  *task'", 0, "1"),
    (Both, "ctr plugins ls -d id==bolt", 0, "io.containerd.snapshotter.v1\nExports:"),
    (Both, "ctr plugins ls -d id==bolt | grep -c 'policy *shared'", 0, "1"),
    (Both, "ctr leases create --id l1 a=b && ctr leases ls", 0, "a=b,containerd.io/gc.expire="),
    (Both, "ctr leases create --id l1", 1, "ctr: lease \"l1\": already exists"),
    (Both, "ctr leases ls -q id==l1; ctr leases ls -q id==l2", 0, "l1\n"),
    (Both, "ctr leases delete l1; ctr leases ls -q", 0, ""),
    (Both, "ctr leases delete --sync l1", 1, "ctr: lease \"l1\": not found"),
    (Both, "ctr leases create --expires 1h x=y > id && [ $(ctr leases ls -q) = $(cat id) ] && ctr leases rm $(cat id)", 0, ""),
    (Both, "ctr events 'topic='", 1, "subscription error: failed parsing subscription filters: filters: parse error: [topic >|=|< ]: unsupported operator"),
    // The order of events, from a subscription that is there for certain: it has told of a label.
    (
        Both,
        "ctr events > ev & P=$!; n=0; until [ -s ev ]; do n=$((n+1)); ctr image label $I n=$n > no; sleep 0.05; done
        ctr run --rm $I e1 true; until grep -q containers/delete ev; do sleep 0.05; done; kill $P
        awk '{print $6}' ev | grep -v images | tr '\n' ' '",
        0,
        "/snapshot/prepare /containers/create /tasks/create /tasks/start /tasks/exit /tasks/delete /snapshot/remove /containers/delete ",
    ),
    (
        Both,
        "ctr events 'topic~=\"/tasks/exec\"' 'topic==\"/tasks/exit\"' 'topic==\"/tasks/paused\"' 'topic==\"/tasks/resumed\"' 'topic==\"/namespaces/update\"' > ev & P=$!
        n=0; until [ -s ev ]; do n=$((n+1)); ctr namespaces label $NS n=$n; sleep 0.05; done
        ctr run -d $I e2 sleep 100; ctr tasks exec --exec-id x e2 true; ctr tasks pause e2; ctr tasks resume e2; ctr tasks kill -s KILL e2
        until grep -q '\"id\":\"e2\"' ev; do sleep 0.05; done; ctr tasks rm e2; ctr containers rm e2; kill $P
        awk '{print $6}' ev | grep -v namespaces | tr '\n' ' '; sed -n '$s/.*exit_status\":\\([0-9]*\\).*/\\1/p' ev",
        0,
        "/tasks/exec-added /tasks/exec-started /tasks/exit /tasks/paused /tasks/resumed /tasks/exit 137\n",
    ),
];

/// Containers and their tasks.
const TASKS: &[Row] = &[
    (Both, "ctr containers create $I c1 sleep 100 && ctr containers ls", 0, "c1           docker.io/library/busybox:latest    io.containerd.runc.v2"),
    (Both, "ctr containers create $I c1 sleep 100", 1, "ctr: snapshot \"c1\": already exists"),
    (Both, "ctr containers create nope:latest c2", 1, "ctr: image \"nope:latest\": not found"),
    (Both, "ctr containers info c1 | grep -v At", 0, "\"SnapshotKey\": \"c1\",\n    \"Snapshotter\": \"overlayfs\","),
    (Both, "ctr containers info nope", 1, "ctr: container \"nope\" in namespace \"NS\": not found"),
    (Both, "ctr containers label c1 a=b x=y && ctr containers label c1 a= | tr , '\n' | sort", 0, "io.containerd.image.config.stop-signal=SIGTERM\nx=y\n"),
    (Both, "ctr containers ls -q labels.x==y; ctr containers ls -q labels.x==n", 0, "c1\n"),
    (Both, "ctr containers label nope a=b", 1, "ctr: container \"nope\" in namespace \"NS\": not found"),
    (Both, "ctr tasks ls -q", 0, ""),
    (Both, "ctr tasks start -d c1 && ctr tasks ls | awk '{print $1,$3}'", 0, "TASK STATUS\nc1 RUNNING\n"),
    (Both, "ctr tasks start -d c1", 1, "ctr: task c1: already exists"),
    (Both, "ctr containers delete c1", 1, "cannot delete a non stopped container"),
    (Both, "ctr tasks start -d nope", 1, "ctr: container \"nope\" in namespace \"NS\": not found"),
    (Both, "ctr tasks exec --exec-id e1 c1 echo hello", 0, "hello\n"),
    (Both, "ctr tasks exec --exec-id e2 c1 sh -c 'echo err >&2; exit 5'", 5, "err\n"),
    (Both, "ctr tasks exec --exec-id e3 c1 nosuchprog", 1, "exec: \"nosuchprog\": executable file not found in $PATH"),
    (Both, "ctr tasks exec --exec-id e4 --user 5:6 --cwd /tmp c1 sh -c 'id -u; pwd'", 0, "5\n/tmp\n"),
    (Both, "script -qec 'ctr tasks exec --exec-id e5 -t c1 sh -c \"[ -t 0 ] && [ -t 1 ] && exit 3\"' no", 3, ""),
    (Both, "ctr tasks exec --exec-id e6 -d c1 sleep 50 && ctr tasks ps c1 | wc -l", 0, "3\n"),
    (Both, "ctr tasks exec --exec-id e6 c1 true", 1, "ctr: id e6: already exists"),
    (Both, "ctr tasks kill --exec-id e6 -s KILL c1; until [ $(ctr tasks ps c1 | wc -l) = 2 ]; do sleep 0.05; done", 0, ""),
    (Both, "ctr tasks exec --exec-id e7 nope true", 1, "ctr: container \"nope\" in namespace \"NS\": not found"),
    (Both, "ctr tasks pause c1 && ctr tasks ls | awk '{print $1,$3}'", 0, "c1 PAUSED\n"),
    (Both, "ctr tasks exec --exec-id e8 c1 true", 1, "ctr: cannot exec in a paused state"),
    (Both, "ctr tasks resume c1 && ctr tasks ls | awk '{print $1,$3}'", 0, "c1 RUNNING\n"),
    (
        Both,
        "for verb in pause resume ps metrics kill attach checkpoint; do ctr tasks $verb nope || echo $verb 1; done",
        0,
        "pause 1\nctr: container \"nope\" in namespace \"NS\": not found\nresume 1\n",
    ),
    (Both, "ctr tasks metrics c1 | head -1; ctr tasks metrics --format json c1 | grep -c '\"usage\": '", 0, "ID    TIMESTAMP"),
    (Both, "ctr tasks metrics c1 | awk '/memory.usage_in_bytes|memory.usage /{print ($2 > 0)}'", 0, "1\n"),
    (Both, "ctr tasks kill -s BOGUS c1", 1, "ctr: invalid signal: BOGUS"),
    (Both, "ctr tasks delete c1", 1, "ctr: task must be stopped before deletion: running: failed precondition"),
    // A runtime whose checkpoint needs no criu. What it wrote is in the image, and a directory is left alone.
    (Both, "ctr run -d --runc-binary $RUNC $I k1 sleep 100 && ctr tasks checkpoint k1 | tr -d 0-9", 0, "containerd.io/checkpoint/k:---::\n"),
    (
        Both,
        "image() { ctr content get $(ctr image ls | awk '/checkpoint.k1/{print $3}') | tr '{' '\n'; }
        image | sed -n 's/.*\\(application[^\"]*\\).*/\\1/p'; ctr content get $(image | sed -n '/criu.tar/s/.*\\(sha256:[0-9a-f]*\\).*/\\1/p') | tar xO pages.img",
        0,
        "application/vnd.containerd.container.criu.checkpoint.criu.tar\napplication/vnd.containerd.container.checkpoint.config.v1+proto\n\
         application/vnd.docker.distribution.manifest.v2+json\napplication/vnd.oci.image.layer.v1.tar+gzip\npages\n",
    ),
    (Both, "mkdir cp && ctr tasks checkpoint --image-path $DIR/cp --work-path $DIR/cp k1 && ls cp", 0, "pages.img\n"),
    (Both, "ls -d $DIR/state/*checkpoint/new-* 2> no | wc -l", 0, "0\n"),
    (
        Both,
        "ctr run -d --runc-binary $RUNC $I bad sleep 100 && ctr tasks checkpoint bad",
        1,
        "cannot dump bad",
    ),
    (Both, "ctr tasks rm -f bad 2> no; ctr containers rm bad; ctr image ls -q | grep -c checkpoint/bad", 1, "0\n"),
    (
        Both,
        "ctr run -d --runc-binary $RUNC $I k2 sleep 100 && ctr containers checkpoint --task k2 cpi:1 && ctr tasks rm -f k2; ctr containers rm k2
        ctr containers restore --live k3 cpi:1 && cat restored && ctr tasks exec --exec-id x k3 ps | grep -c sleep
        ctr tasks rm -f k3 2> no; ctr containers rm k3; ctr image rm --sync cpi:1; ls -d $DIR/state/*checkpoint/task/*/* 2> no | wc -l",
        0,
        "pages\n1\ncpi:1\n0\n",
    ),
    (Both, "ctr tasks rm -f k1 && ctr containers rm k1", 0, ""),
    (Both, "ctr tasks kill -s KILL c1; until ctr tasks ls | grep -q STOPPED; do sleep 0.05; done; ctr tasks ls | awk '{print $1,$3}'", 0, "c1 STOPPED\n"),
    (Both, "ctr tasks kill c1", 1, "ctr: process already finished: not found"),
    (Both, "ctr tasks exec --exec-id e9 c1 true", 1, "ctr: cannot exec in a stopped state"),
    (Both, "ctr tasks delete c1", 0, "task c1 exit with non-zero exit code 137"),
    (Both, "ctr tasks delete c1", 1, "ctr: no running task found: task c1 not found"),
    (Both, "ctr containers rm c1 && ctr snapshots ls | wc -l", 0, "2\n"),
    (Both, "ctr containers rm c1", 1, "container \"c1\" in namespace \"NS\": not found"),
    (
        Both,
        "ctr run -d $I y2 sh -c 'while ! [ -e /go ]; do sleep 0.1; done; echo out; exit 6'; (ctr tasks exec --exec-id x y2 touch /go) & ctr tasks attach y2; echo $?; wait; ctr containers rm y2",
        0,
        "6\n",
    ),
];

/// `ctr run`.
const RUN: &[Row] = &[
    (Both, "ctr run --rm $I r1 echo hi", 0, "hi\n"),
    (Both, "ctr run --rm $I r1 sh -c 'echo e >&2; exit 7'", 7, "e\n"),
    (Both, "ctr run $I r2 nosuch", 1, "exec: \"nosuch\": executable file not found in $PATH"),
    (Both, "ctr containers ls -q; ctr tasks ls -q; ctr snapshots ls | wc -l", 0, "r2\n3\n"),
    (Both, "ctr run --rm $I r2 nosuch", 1, "ctr: snapshot \"r2\": already exists"),
    (Both, "ctr containers rm r2; ctr snapshots ls | wc -l", 0, "2\n"),
    (Both, "ctr run --rm $I r3 nosuch; ctr containers ls -q; ctr snapshots ls | wc -l", 0, "2\n"),
    (Both, "ctr run -d $I r4 sleep 30 && ctr run -d $I r4 sleep 30", 1, "ctr: snapshot \"r4\": already exists"),
    (Both, "ctr tasks rm -f r4; ctr containers rm r4", 0, ""),
    (Both, "script -qec 'ctr run --rm -t '$I' r5 sh -c \"[ -t 0 ] && [ -t 1 ] && exit 3\"' no", 3, ""),
    (Both, "ctr run --rm --net-host $I r6 readlink /proc/self/ns/net | grep -cFx $(readlink /proc/self/ns/net)", 0, "1\n"),
    (Both, "ctr run --rm $I r6 readlink /proc/self/ns/net | grep -cFx $(readlink /proc/self/ns/net)", 1, "0\n"),
    (Both, "ctr run --rm --cni $I r7 true", 1, "cni"),
    (
        Both,
        "mkdir -p m; echo data > m/f; ctr run --rm --mount type=bind,src=$DIR/m,dst=/m,options=rbind:ro $I r8 sh -c 'cat /m/f && touch /m/x 2> /dev/null'",
        1,
        "data\n",
    ),
    (Both, "ctr run --rm --mount type=bind,src=/nosuch,dst=/m,options=rbind:ro $I r8 true", 1, "no such file or directory"),
    (Both, "ctr run --rm --env A=b --env C=d $I r9 sh -c 'echo $A$C'", 0, "bd\n"),
    (New, "ctr run --rm --user 12:13 $I r10 sh -c 'id -u; id -g'", 0, "12\n13\n"),
    // The snapshot of a run that failed before it had a container is nobody's: its client has given up its lease.
    (New, "ctr run --rm --user nosuch $I r10 id", 1, "no users found"),
    (New, "timeout 20 sh -c 'until ctr run --rm '$I' r10 echo again; do sleep 0.05; done' 2> no", 0, "again\n"),
    (
        Both,
        "ctr run -d --memory-limit 33554432 $I r12 sleep 60; cd /sys/fs/cgroup; cat memory/$CONTAINERD_NAMESPACE/r12/memory.limit_in_bytes 2> $DIR/no || cat $CONTAINERD_NAMESPACE/r12/memory.max; cd $DIR
        ctr tasks rm -f r12 2> no; ctr containers rm r12",
        0,
        "33554432\n",
    ),
    (
        Both,
        "ctr run -d --log-uri file://$DIR/log.out $I r13 sh -c 'echo one; echo two >&2'; until ctr tasks ls | grep -q STOPPED; do sleep 0.05; done; until [ $(wc -l < log.out) = 2 ]; do sleep 0.05; done; sort log.out; ctr tasks rm r13; ctr containers rm r13",
        0,
        "one\ntwo\n",
    ),
    (Both, "ctr run -d --log-uri bogus://x $I r13 true", 1, "ctr: failed to create shim task: failed to create init process I/O: unknown STDIO scheme bogus"),
    (Both, "ctr containers rm r13", 0, ""),
    (Both, "ctr run --rm --snapshotter native $I r14 echo native", 0, "native\n"),
    (Both, "ctr run --rm --snapshotter nosuch $I r14 true", 1, "snapshotter not loaded: nosuch: invalid argument"),
];

/// `ctr run` with runtimes by name and by path, and a second OCI runtime.
const SHIMS: &[Row] = &[
    (Both, "ctr run --rm --runtime io.containerd.runc.v2 $I r15 echo name", 0, "name\n"),
    (Both, "ctr run --rm --runtime $SHIM $I r15 echo path", 0, "path\n"),
    (Both, "ctr run --rm --runtime io.containerd.nosuch.v2 $I r16 true; ctr containers ls -q", 0, "runtime \"io.containerd.nosuch.v2\" binary not installed \"containerd-shim-nosuch-v2\""),
    (Both, "ctr run --rm --runtime bogus $I r16 true", 1, "invalid runtime name bogus"),
    (Both, "ctr run --rm --runtime /nosuch/shim $I r17 true", 1, "/nosuch/shim"),
    (Both, "ctr run --rm --runc-binary runc $I r18 echo runc", 0, "runc\n"),
    (Both, "ctr run --rm --runc-binary /nosuch/runc $I r18 true", 1, "/nosuch/runc"),
    (Both, "ctr run --rm nope:latest r19 true", 1, "ctr: image \"nope:latest\": not found"),
    (New, "ctr run --rm --hostname hh $I r20 hostname", 0, "hh\n"),
    (Both, "ctr run --rm --cwd /tmp --privileged --label a=b $I r21 sh -c 'pwd; ls /dev/kmsg'", 0, "/tmp\n/dev/kmsg\n"),
    (Both, "(until ctr tasks ls | grep -q RUNNING; do sleep 0.05; done; echo in) | ctr run --rm $I r22 cat", 0, "in\n"),
    (Both, "ctr containers ls -q; ctr tasks ls -q; ctr snapshots ls | wc -l", 0, "2\n"),
    (Both, "ctr run --rm --runc-binary $CRUN $I u1 sh -c 'echo from crun; exit 4'", 4, "from crun\n"),
    (Both, "ctr run --rm --runc-binary $CRUN $I u1 nosuch", 1, "executable file `nosuch` not found in $PATH"),
    (
        Both,
        "ctr run -d --runc-binary $CRUN $I u2 sleep 100 && ctr tasks exec --exec-id x u2 sh -c 'echo in; exit 3'; echo $?; ctr tasks pause u2; ctr tasks ls | awk '{print $1,$3}'; ctr tasks resume u2; ctr tasks ps u2 | wc -l
        ctr tasks kill -s KILL u2; until ctr tasks ls | grep -q STOPPED; do sleep 0.05; done; ctr tasks rm u2; echo $?; ctr containers rm u2",
        0,
        "in\n3\nTASK STATUS\nu2 PAUSED\n2\n",
    ),
];

/// `ctr snapshots`. `$S` is the image's only layer.
const SNAPSHOTS: &[Row] = &[
    (Both, "ctr snapshots ls | awk '{print $NF}'", 0, "KIND\nCommitted\n"),
    (Both, "ctr snapshots info $S", 0, "\"Kind\": \"Committed\",\n    \"Name\": \"sha256:"),
    (Both, "ctr snapshots info nope", 1, "ctr: snapshot nope does not exist: not found"),
    (
        Both,
        "ctr snapshots prepare --target t p1 $S | sed 's/[a-z]*=[^,]*/\\n&/g' | sed 's/=.*//'",
        0,
        "mount -t overlay overlay t -o \nworkdir\nupperdir\nlowerdir\nindex\n",
    ),
    (
        Both,
        "ctr snapshots prepare p2 $S && ctr snapshots prepare p2 $S",
        1,
        "ctr: snapshot \"p2\": already exists",
    ),
    (Both, "ctr snapshots prepare p3 nope", 1, "ctr: parent snapshot nope does not exist: not found"),
    (Both, "ctr snapshots prepare p3 p2", 1, "is not committed snapshot: invalid argument"),
    (Both, "ctr snapshots mounts t nope", 1, "ctr: snapshot nope does not exist: not found"),
    (Both, "ctr snapshots mounts t $S", 1, "not active or view: failed precondition"),
    (Both, "ctr snapshots view --target t v1 $S", 0, "/fs t -o ro,rbind\n"),
    (Both, "ctr snapshots view v2 nope", 1, "ctr: parent snapshot nope does not exist: not found"),
    (Both, "ctr snapshots tree | grep -v v1", 0, "\n  \\_ p1\n  \\_ p2\n"),
    (
        Both,
        "ctr snapshots usage p1; ctr snapshots usage -b p1 | awk '{print NF}'",
        0,
        "KEY SIZE    INODES \np1  4.0 KiB 1",
    ),
    (Both, "ctr snapshots usage nope", 1, "ctr: snapshot nope does not exist: not found"),
    (
        Both,
        "ctr snapshots label p2 a=b c=d && ctr snapshots label p2 a= | tr , '\n' | sort | cut -d= -f1",
        0,
        "c\ncontainerd.io/gc.root\n",
    ),
    (Both, "ctr snapshots label nope a=b", 1, "ctr: snapshot nope does not exist: not found"),
    (
        Both,
        "mkdir -p t && eval \"$(ctr snapshots mounts $DIR/t p2)\" && echo new > t/new && rm t/bin/ls && mkdir t/dd && umount t && ctr snapshots diff p2 > d.tar && tar tzvf d.tar | awk '{print $1,$2,$3,$NF}'",
        0,
        "drwxr-xr-x 0/0 0 bin/\n---------- 0/0 0 bin/.wh.ls\ndrwxr-xr-x 0/0 0 dd/\n-rw-r--r-- 0/0 4 new\n",
    ),
    (
        Both,
        "ctr snapshots diff --media-type application/vnd.oci.image.layer.v1.tar p2 | tar t",
        0,
        "bin/\nbin/.wh.ls\ndd/\nnew\n",
    ),
    (Both, "ctr snapshots diff --media-type x/y p2", 1, "unsupported diff media type: x/y"),
    (Both, "ctr snapshots diff --keep --label x=y --ref rr p2 | tar tz", 0, "bin/\nbin/.wh.ls\ndd/\nnew\n"),
    (Both, "ctr snapshots diff nope", 1, "ctr: snapshot nope does not exist: not found"),
    (Both, "ctr snapshots commit k1 p2 && ctr snapshots tree | grep -v v1", 0, "\n  \\_ k1\n  \\_ p1\n"),
    (Both, "ctr snapshots commit k2 nope", 1, "ctr: snapshot nope does not exist: not found"),
    (
        Both,
        "ctr snapshots view v3 k1 > no; ctr snapshots commit k3 v3",
        1,
        "is not active: failed precondition",
    ),
    (
        Both,
        "ctr snapshots rm v3; ctr snapshots prepare p4 k1 && ctr snapshots tree | grep -A1 k1",
        0,
        "  \\_ k1\n    \\_ p4\n",
    ),
    (Both, "ctr snapshots diff k1 | tar tz", 0, "bin/\nbin/.wh.ls\ndd/\nnew\n"),
    (Both, "ctr snapshots commit k1 p4", 1, "ctr: snapshot \"k1\": already exists"),
    (
        Both,
        "ctr snapshots rm k1",
        1,
        "ctr: failed to remove \"k1\": cannot remove snapshot with child: failed precondition",
    ),
    (
        Both,
        "ctr snapshots rm p4; ctr snapshots rm k1; ctr snapshots rm nope",
        1,
        "ctr: failed to remove \"nope\": snapshot nope does not exist: not found",
    ),
    (Both, "ctr snapshots unpack $(ctr image ls | awk 'NR==2{print $3}')", 0, "...done"),
    (
        Both,
        "ctr snapshots --snapshotter nosuch ls",
        1,
        "ctr: snapshotter not loaded: nosuch: invalid argument",
    ),
    (
        Both,
        "s() { ctr snapshots --snapshotter native $@; }; s prepare n1; s tree; s commit n3 n1 && s usage n3 && s rm n3; s ls | wc -l",
        0,
        " n1\nKEY SIZE    INODES \nn3  4.0 KiB 1      \n1\n",
    ),
    (
        Both,
        "ctr snapshots rm p1 && ctr leases create --id z > no && ctr leases rm --sync z && ctr snapshots ls | wc -l",
        0,
        "2\n",
    ),
];

/// Two runtimes under names of their own. The first is runc with a checkpoint and a restore that need no criu. The second is crun, and where it is one of
/// those that refuse a mixture of control group versions, it does not see the second version, nor a specification's version that is newer than it.
const RUNTIMES: &str = r#"
cat > fake << 'END'
#!/bin/sh
for a; do
    [ "$p" = --image-path ] && image=$a
    case $a in checkpoint|restore) verb=$a;; esac
    p=$a
done
case $verb in
checkpoint)
    [ $p != bad ] || { echo cannot dump bad >&2; exit 1; }
    echo pages > $image/pages.img
    exit;;
restore)
    cp $image/pages.img @DIR@/restored
    for a; do
        shift
        if [ -n "$skip" ]; then skip=; continue; fi
        case $a in
        restore) set -- "$@" run;;
        --image-path|--work-path) skip=1;;
        --bundle|--pid-file|--root|--log|--log-format|--detach) set -- "$@" "$a";;
        --*) ;;
        *) set -- "$@" "$a";;
        esac
    done;;
esac
exec runc "$@"
END
sed -i "s#@DIR@#$DIR#" fake
cat > crun << 'END'
#!/bin/sh
for a; do [ "$p" = --bundle ] && sed -i 's/"ociVersion":"[^"]*"/"ociVersion":"1.0.2"/' $a/config.json; p=$a; done
exec unshare -m sh -c 'umount /sys/fs/cgroup/unified 2> /dev/null; exec crun "$@"' crun "$@"
END
chmod +x fake crun
"#;

/// Runs rows on a daemon of their own that has the image, from a registry if they need one.
fn check(old: bool, rows: &[Row], registry: bool) {
    let mut containerd = Containerd::start();
    let ns = containerd.namespace().to_owned();
    let mut settings = format!(
        "NS={ns}; RUNC=$DIR/fake; CRUN=$DIR/crun; SHIM={}\n",
        bin_dir().join("containerd-shim-rs-v2").display()
    );
    if old {
        settings.push_str(&format!("PATH={}:$PATH\n", peer_dir().join("old").display()));
    }
    if registry {
        containerd.registry();
        std::fs::write(containerd.path("layer.tar"), e2e_tests::image::busybox_layer()).expect("a layer");
        settings.push_str(&format!("R={REGISTRY}; I=$R/busybox:latest; "));
        settings.push_str("DATA=sha256:6667b2d1aab6a00caa5aee5af8ad9f1465e567abf1c209d15727d57b3e8f6e5f; ");
        settings.push_str("DATA2=sha256:0000000000000000000000000000000000000000000000000000000000000000\n");
    } else {
        std::fs::write(containerd.path("image.tar"), e2e_tests::image::busybox()).expect("an image");
        containerd.sh(&format!("{settings}{RUNTIMES} ctr image import image.tar")).ok();
        settings.push_str("I=docker.io/library/busybox:latest; S=$(ctr snapshots ls | awk '/Committed/ && !/ sha256/{print $1}')\n");
    }
    let mut wrong = String::new();
    for (whom, script, code, want) in rows.iter().copied() {
        if whom == if old { New } else { Old } {
            continue;
        }
        let ran = containerd.sh(&format!("{settings}{{ {script}\n}} 2>&1"));
        let said = ran.stdout.replace(&ns, "NS");
        if ran.code != code || !said.contains(want) {
            wrong.push_str(&format!("--- {script}\nwanted {code} {want:?}, got {} {said}\n", ran.code));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_stock_client_finds_a_containerd() {
    check(false, IMAGES, true);
}

#[test]
fn the_stock_client_of_debian_12_finds_a_containerd() {
    check(true, IMAGES, true);
}

#[test]
fn the_stock_client_asks_the_daemon_and_hears_its_events() {
    check(false, DAEMON, false);
}

#[test]
fn the_stock_client_of_debian_12_asks_the_daemon_and_hears_its_events() {
    check(true, DAEMON, false);
}

#[test]
fn the_stock_client_manages_containers_and_tasks() {
    check(false, TASKS, false);
}

#[test]
fn the_stock_client_of_debian_12_manages_containers_and_tasks() {
    check(true, TASKS, false);
}

#[test]
fn the_stock_client_runs_containers() {
    check(false, RUN, false);
}

#[test]
fn the_stock_client_of_debian_12_runs_containers() {
    check(true, RUN, false);
}

#[test]
fn the_stock_client_chooses_runtimes() {
    check(false, SHIMS, false);
}

#[test]
fn the_stock_client_of_debian_12_chooses_runtimes() {
    check(true, SHIMS, false);
}

#[test]
fn the_stock_client_manages_snapshots() {
    check(false, SNAPSHOTS, false);
}

#[test]
fn the_stock_client_of_debian_12_manages_snapshots() {
    check(true, SNAPSHOTS, false);
}

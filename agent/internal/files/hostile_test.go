package files

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Who is who: the pod's process that should have the key, and another that would like to.
const (
	reader   = 4242
	attacker = 6666
	secret   = "the key itself"
)

var contents = []file{{certFile, []byte("c"), 0o444}, {keyFile, []byte(secret), 0o400}}

// asAgent runs f with the one capability that the agent's container has: not even root may then look into the
// directories of others.
func asAgent(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_CHOWN, Permitted: 1 << unix.CAP_CHOWN}}
		err := unix.Capset(&header, &data[0])
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// TestHostilePodRacesTheWriter has the agent write again and again, while a process of the pod moves, replaces and mocks
// whatever it finds between any two of the agent's system calls.
func TestHostilePodRacesTheWriter(t *testing.T) {
	if dir := os.Getenv("HOSTILE_DIR"); dir != "" {
		attack(dir, os.Getenv("HOSTILE_VICTIM"))
	}
	_, dir := volume(t)
	victim := t.TempDir()
	precious := filepath.Join(victim, keyFile)
	if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	pod := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	pod.Env = append(os.Environ(), "HOSTILE_DIR="+dir, "HOSTILE_VICTIM="+victim)
	pod.Stderr = os.Stderr
	out, err := pod.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if lines.Scan(); lines.Text() != "ready" {
		t.Fatalf("the pod's process: %q, %v", lines.Text(), lines.Err())
	}

	const length = 4 * time.Second
	rounds, written := 0, 0
	failures := map[string]int{}
	done := make(chan error, 1)
	go func() {
		done <- asAgent(func() error {
			for begun := time.Now(); time.Since(begun) < length; rounds++ {
				if err := write(dir); err != nil {
					failures[reason(err)]++
				} else {
					written++
				}
			}
			return nil
		})
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(length + 5*time.Second):
		t.Error("the agent stands still")
	}
	if err := pod.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	leaks := map[string]int{}
	for lines.Scan() {
		leaks[lines.Text()]++
	}
	_ = pod.Wait() // it was killed
	if len(leaks) > 0 {
		t.Errorf("the pod's process got hold of %v", leaks)
	}
	if t.Failed() {
		return // the writer may run on
	}
	t.Logf("%d rounds, %d written, failures: %v", rounds, written, failures)
	if written < 10 || rounds-written < 10 {
		t.Errorf("of %d rounds %d succeeded: the race is no race", rounds, written)
	}
	if b, err := os.ReadFile(precious); err != nil || string(b) != "precious" {
		t.Errorf("the victim is now %q, %v", b, err)
	}
	for path, mode := range map[string]fs.FileMode{victim: 0o755, precious: 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode || st.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s outside was touched: %v, %v", path, st, err)
		}
	}
	if entries, err := os.ReadDir(victim); err != nil || len(entries) != 1 {
		t.Errorf("files outside: %v, %v", entries, err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(b, []byte(secret)) {
			return err
		}
		st, err := os.Stat(path)
		if err == nil && (st.Sys().(*syscall.Stat_t).Uid != reader || st.Mode() != 0o400) {
			t.Errorf("the key is in %s: mode %v, owner %d", path, st.Mode(), st.Sys().(*syscall.Stat_t).Uid)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if after, err := os.ReadDir("/proc/self/fd"); err != nil || len(after) > len(before)+2 { // of the runtime's poller
		t.Errorf("descriptors: %d before, %d after, %v", len(before), len(after), err)
	}
}

func write(dir string) error {
	root, err := open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	made, err := replace(root, contents, reader, reader, time.Now())
	if err != nil {
		return err
	}
	_ = sweep(root, made) // what it could not remove is not there by its doing
	return nil
}

func reason(err error) string {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Op + ": " + path.Err.Error()
	case errors.As(err, &link):
		return link.Op + ": " + link.Err.Error()
	}
	_, text, _ := strings.Cut(err.Error(), " ") // after the directory's name
	return text
}

// attack is the process of the pod. It prints what it gets hold of, and does not return.
func attack(dir, victim string) {
	fail := func(err error) {
		fmt.Println(err)
		os.Exit(1)
	}
	if err := os.Chdir(dir); err != nil { // which a container has mounted elsewhere
		fail(err)
	}
	if err := syscall.Setgroups(nil); err != nil {
		fail(err)
	}
	if err := syscall.Setresgid(attacker, attacker, attacker); err != nil {
		fail(err)
	}
	if err := syscall.Setresuid(attacker, attacker, attacker); err != nil {
		fail(err)
	}
	if _, err := os.ReadFile(filepath.Join(victim, keyFile)); err == nil {
		fail(errors.New("the process may read everything"))
	}
	syscall.Umask(0)
	fmt.Println("ready")
	// The errors of an attack are of no interest.
	for round := 0; ; round++ {
		if round%2000 < 1000 {
			swapDirectories(victim, round)
		}
		switch round % 500 {
		case 10:
			swap(newLink, func() { _ = os.Symlink(victim, newLink) })
		case 20:
			swap(newLink, func() { _ = os.Mkdir(newLink, 0o777) })
		case 30:
			swap(dataLink, func() { _ = os.Symlink(victim, dataLink) })
		case 40:
			swap(dataLink, func() { _ = os.MkdirAll(dataLink+"/a/b", 0o700) })
		case 60:
			_ = os.RemoveAll(dataLink)
		case 70:
			swap(keyFile, func() { _ = unix.Mkfifo(keyFile, 0o666) })
		case 80:
			swap(keyFile, func() { _ = os.Symlink(filepath.Join(victim, keyFile), keyFile) })
		case 90:
			swap(keyFile, func() { _ = os.MkdirAll(keyFile+"/a/b/c", 0o700) })
		case 110:
			_ = os.RemoveAll(keyFile)
		case 120:
			_ = os.MkdirAll("..hidden/a/b", 0o700)
			_ = os.Chmod("..hidden", 0)
		case 130:
			look(".", 0)
		}
		if round%20 == 0 {
			clear()
		}
	}
}

// swapDirectories waits a little for a directory that the agent has just made, and puts one of the pod's own in its place.
func swapDirectories(victim string, round int) {
	kind := round % 4
	mine := fmt.Sprint("mine", kind)
	if _, err := os.Lstat(mine); err != nil {
		if kind == 3 { // elsewhere
			_ = os.Symlink(victim, mine)
		} else { // with nothing in it, or as below
			_ = os.Mkdir(mine, 0o777)
		}
		for _, f := range contents {
			switch kind {
			case 0: // where the agent waits for a reader
				_ = unix.Mkfifo(mine+"/"+f.name, 0o666)
			case 1: // that everybody may read
				_ = os.WriteFile(mine+"/"+f.name, nil, 0o666)
			}
		}
	}
	known := map[string]bool{}
	for n := range 100 {
		d, err := os.Open(".")
		if err != nil {
			return
		}
		names, _ := d.Readdirnames(-1)
		d.Close()
		for _, name := range names {
			if n > 0 && strings.HasPrefix(name, "..2") && !known[name] {
				_ = unix.Renameat2(unix.AT_FDCWD, mine, unix.AT_FDCWD, name, unix.RENAME_EXCHANGE)
				look(name, 1)
				_ = os.Rename(mine, fmt.Sprint("was-", round))
				return
			}
			known[name] = true
		}
	}
}

func swap(name string, with func()) {
	_ = os.Rename(name, fmt.Sprintf("was-%s%d", strings.Trim(name, "."), time.Now().UnixNano()%8))
	with()
}

// look tells of every file with the key that this process can read.
func look(path string, depth int) {
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		below := path + "/" + e.Name()
		if e.IsDir() && depth < 3 {
			look(below, depth+1)
			continue
		}
		if !e.Type().IsRegular() {
			continue // a FIFO would let go who waits at it
		}
		fd, err := unix.Open(below, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		b := make([]byte, len(secret))
		if n, _ := unix.Read(fd, b); n > 0 && string(b[:n]) == secret {
			fmt.Println("the key in a file " + filepath.Base(below))
		}
		_ = unix.Close(fd)
	}
}

func clear() {
	entries, _ := os.ReadDir(".")
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "was-") {
			_ = os.RemoveAll(e.Name())
		}
	}
}

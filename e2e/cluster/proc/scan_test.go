package proc

import (
	"os"
	"testing"
)

func TestParseStat(t *testing.T) {
	got, err := parseStat(7, "7 (a ) (b) S 1 7 5 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 100")
	if err != nil {
		t.Fatal(err)
	}
	if want := (Process{PID: 7, Parent: 1, Session: 5, CPUTicks: 100}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := parseStat(7, "7 (a) S 1"); err == nil {
		t.Error("a short line is accepted")
	}
}

func TestGroupFollowsSessionsAndDescendants(t *testing.T) {
	const main = 1 << 30 // No process of the machine has such ids.
	group := Group([]Process{
		{PID: main, Parent: 1, Session: main},
		{PID: main + 1, Parent: main, Session: main + 1},
		{PID: main + 2, Parent: main + 1, Session: main + 1},
		{PID: main + 3, Parent: 1, Session: main},
		{PID: main + 4, Parent: 1, Session: main, Zombie: true},
		{PID: main + 5, Parent: 1, Session: main + 5},
	}, main, "NONE=1")
	if len(group) != 4 {
		t.Errorf("got %+v", group)
	}
}

func TestListFindsThisProcess(t *testing.T) {
	processes, err := List()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if p.PID == os.Getpid() {
			return
		}
	}
	t.Error("this process is missing")
}

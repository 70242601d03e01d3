package node

import "testing"

func TestAddressPool(t *testing.T) {
	pool, err := newAddressPool("127.70.1.0/30")
	if err != nil {
		t.Fatal(err)
	}
	take := func() string {
		t.Helper()
		address, err := pool.take()
		if err != nil {
			t.Fatal(err)
		}
		return address
	}
	first, second := take(), take()
	if first != "127.70.1.1" || second != "127.70.1.2" {
		t.Errorf("got %s and %s", first, second)
	}
	pool.release(first)
	if third := take(); third == first {
		t.Errorf("%s is used again at once", third)
	}
	if fourth := take(); fourth != first {
		t.Errorf("got %s, want the released %s", fourth, first)
	}
	if address, err := pool.take(); err == nil {
		t.Errorf("got %s from an empty pool", address)
	}
}

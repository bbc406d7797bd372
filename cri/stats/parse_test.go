package stats

import (
	"reflect"
	"testing"
	"time"
)

func TestPressureFiles(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       Pressure
	}{
		{"of today's kernels", "some avg10=8.33 avg60=1.50 avg300=0.31 total=1850000\nfull avg10=8.15 avg60=1.47 avg300=0.30 total=1710000\n", Pressure{
			Some: Stall{8.33, 1.5, 0.31, 1850 * time.Millisecond}, Full: Stall{8.15, 1.47, 0.30, 1710 * time.Millisecond},
		}},
		{"of CPU before Linux 5.13", "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n", Pressure{Some: Stall{Total: 7 * time.Microsecond}}},
		{"with a line and a key that are not known", "later avg10=x\nsome avg10=1.00 avg1000=0.5 total=1\n", Pressure{Some: Stall{Avg10: 1, Total: time.Microsecond}}},
		{"empty", "", Pressure{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := pressure([]byte(c.text))
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
	for _, bad := range []string{"some avg10=high", "full total=-", "some total=99999999999999999999"} {
		if got, err := pressure([]byte(bad)); err == nil {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}

func TestBlockDevicesOfVersion1(t *testing.T) {
	got := blkio([]byte(`8:16 Read 237568
8:16 Write 20971520
8:16 Sync 21209088
8:16 Async 0
8:16 Discard 0
8:16 Total 21209088
253:0 Write 4096
Total 21213184
`), []byte(`8:16 Read 10
8:16 Write 640
8:16 Total 650
7:1 Read 3
Total 653
`))
	want := []DeviceIO{
		{Major: 8, Minor: 16, ReadBytes: 237568, WrittenBytes: 20971520, Reads: 10, Writes: 640},
		{Major: 253, WrittenBytes: 4096},
		{Major: 7, Minor: 1, Reads: 3},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if got := blkio([]byte("Total 0\n"), []byte("Total 0\n")); got != nil {
		t.Errorf("without a device: %+v", got)
	}
}

func TestBlockDevicesOfVersion2(t *testing.T) {
	got := ioStat([]byte("98:0 rbytes=237568 wbytes=20971520 rios=10 wios=640 dbytes=0 dios=0\n8:0 \n7:0\nnothing\n1:2 rbytes=9 cost.usage=1\n"))
	want := []DeviceIO{
		{Major: 98, ReadBytes: 237568, WrittenBytes: 20971520, Reads: 10, Writes: 640},
		{Major: 1, Minor: 2, ReadBytes: 9},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestNumbers(t *testing.T) {
	for text, want := range map[string]uint64{"0\n": 0, "max\n": Unlimited, "9223372036854771712": 9223372036854771712} {
		if got, err := number([]byte(text)); err != nil || got != want {
			t.Errorf("%q is %d, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "-1", "1 2", "many"} {
		if got, err := number([]byte(bad)); err == nil {
			t.Errorf("%q is %d", bad, got)
		}
	}
	got := map[string]uint64{}
	flatKeyed([]byte("anon 1\nnegative -1\nlonely\nfile 2"), func(k []byte, n uint64) { got[string(k)] = n })
	if want := map[string]uint64{"anon": 1, "file": 2}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestALineOfANetworkInterfaceThatIsCutOffIsAnError(t *testing.T) {
	for _, bad := range []string{"eth0: 1 2 3", "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 \n", "eth0: -1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"} {
		if got, err := netDev([]byte(bad)); err == nil {
			t.Errorf("%q is %+v", bad, got)
		}
	}
}

// FuzzParse shows that no content of a file makes a parser panic or invent
// what is not there.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"max", "7\n", "anon 1\nfile 2\n", "some avg10=8.33 avg60=1.50 avg300=0.31 total=1850000\n",
		"98:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n", "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
		"Inter-| Receive\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := number(data); err == nil && n != Unlimited && len(data) == 0 {
			t.Error("a number from nothing")
		}
		flatKeyed(data, func(key []byte, _ uint64) {
			if len(key) == 0 && len(data) == 0 {
				t.Error("a key from nothing")
			}
		})
		if p, err := pressure(data); err != nil && p != (Pressure{}) {
			t.Errorf("an error, and %+v", p)
		}
		lines := 0
		for _, b := range data {
			if b == '\n' {
				lines++
			}
		}
		if got := len(ioStat(data)); got > lines+1 {
			t.Errorf("%d devices in %d lines", got, lines+1)
		}
		if got := len(blkio(data, data)); got > lines+1 {
			t.Errorf("%d devices in %d lines", got, lines+1)
		}
		interfaces, err := netDev(data)
		if err != nil && interfaces != nil || len(interfaces) > lines+1 {
			t.Errorf("%v, and %+v", err, interfaces)
		}
	})
}

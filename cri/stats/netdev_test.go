package stats

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/berth-io/berth/cri/ns"
)

func TestInterfacesAreReadFromTheKernelsTable(t *testing.T) {
	data, err := os.ReadFile("testdata/net_dev") // of Linux 6.18
	if err != nil {
		t.Fatal(err)
	}
	got, err := netDev(data)
	want := []Interface{{Name: "ifb0"}, {Name: "ifb1"}, {
		Name: "eth0", RxBytes: 500938702, RxPackets: 38491, TxBytes: 3592725, TxPackets: 35980,
	}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestNetworksAreReadFromInsideTheirNamespaces(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it creates namespaces")
	}
	dir := t.TempDir()
	var paths []string
	for _, name := range []string{"a", "b"} {
		d := filepath.Join(dir, name)
		if err := ns.Create(d, ns.Spec{Kinds: []ns.Kind{ns.Net}}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := ns.Remove(d); err != nil {
				t.Error(err)
			}
		})
		paths = append(paths, ns.Path(d, ns.Net))
	}
	if err := ns.Do(paths[1], sendOverVeth); err != nil {
		t.Fatal(err)
	}
	got := Networks([]string{paths[0], filepath.Join(dir, "nothing"), paths[1]})
	if got[0].Err != nil || find(got[0].Interfaces, "test0") != nil {
		t.Errorf("the first has %+v", got[0])
	}
	if !errors.Is(got[1].Err, ErrGone) {
		t.Errorf("without a namespace: %+v", got[1])
	}
	if i := find(got[2].Interfaces, "test0"); got[2].Err != nil || i == nil || i.TxPackets != 1 || i.TxBytes != packetBytes {
		t.Errorf("the second has %+v", got[2])
	}
	if i := find(got[2].Interfaces, "test1"); i == nil || i.RxPackets != 1 || i.RxBytes != packetBytes {
		t.Errorf("the second has %+v", got[2])
	}
}

func find(list []Interface, name string) *Interface {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// packetBytes is a header of Ethernet, those of IP and UDP, and the data.
const packetBytes = 14 + 28 + 1020

// sendOverVeth sends one packet from test0 to test1.
func sendOverVeth() error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "test0"}, PeerName: "test1"}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	peer, err := netlink.LinkByName("test1")
	if err != nil {
		return err
	}
	for _, name := range []string{"test0", "test1"} {
		// No router solicitations, which would be packets too.
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	addr, err := netlink.ParseAddr("10.0.0.1/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	// The sender last: it has a carrier at once then.
	for _, l := range []netlink.Link{peer, link} {
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	if err := netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: link.Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(10, 0, 0, 2), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	}); err != nil {
		return err
	}
	c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 9})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(make([]byte, 1020))
	return err
}

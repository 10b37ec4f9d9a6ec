package p2p

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/stretchr/testify/require"
)

func TestForgetExpired_DropsWhoLeftAndKeepsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		book := pstoremem.NewAddrBook()
		defer book.Close()
		addr := []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/1")}
		book.AddAddrs("connected", addr, peerstore.ConnectedAddrTTL)
		book.AddAddrs("left", addr, peerstore.ConnectedAddrTTL)
		// What identify does when a connection ends.
		book.UpdateAddrs("left", peerstore.ConnectedAddrTTL, peerstore.TempAddrTTL)
		book.AddAddrs("left", addr, peerstore.RecentlyConnectedAddrTTL)
		book.UpdateAddrs("left", peerstore.TempAddrTTL, 0)

		time.Sleep(peerstore.RecentlyConnectedAddrTTL - time.Minute)
		forgetExpired(book)
		require.ElementsMatch(t, []peer.ID{"connected", "left"}, book.PeersWithAddrs())

		time.Sleep(2 * time.Minute)
		book.AddAddrs("new", addr, peerstore.TempAddrTTL)
		forgetExpired(book)
		require.ElementsMatch(t, []peer.ID{"connected", "new"}, book.PeersWithAddrs())
	})
}

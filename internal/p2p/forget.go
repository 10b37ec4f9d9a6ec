package p2p

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peerstore"
)

// forgetEvery is how often expired addresses are looked for. Addresses of those who were connected are good for 15 minutes.
const forgetEvery = 5 * time.Minute

// forgetExpired drops what the address book still holds of peers none of whose addresses are good any more. go-libp2p's, up to v0.51 at least, does so by
// itself only for peers that were never connected: addresses of a connected one leave the queue of what will expire, and do not come back to
// it when the connection ends. Each peer that ever came would take 0.7 KiB for as long as the process runs.
func forgetExpired(book peerstore.AddrBook) {
	for _, p := range book.PeersWithAddrs() {
		if len(book.Addrs(p)) == 0 {
			book.ClearAddrs(p)
		}
	}
}

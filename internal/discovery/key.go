package discovery

import (
	"encoding/binary"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multihash"

	"github.com/kwaai/kwaaid/internal/expert"
)

// keyNamespace stands before the ID in the bytes that an expert's key is the hash of.
const keyNamespace = "/kwaai/expert/"

// Key returns the provider key of an expert: the CIDv1 (raw, SHA-256) of `/kwaai/expert/` and the ID as 8 big-endian bytes.
func Key(id expert.ID) cid.Cid {
	data := binary.BigEndian.AppendUint64([]byte(keyNamespace), uint64(id))
	sum, err := multihash.Sum(data, multihash.SHA2_256, -1)
	if err != nil {
		panic(err) // SHA-256 of 22 bytes is always there
	}
	return cid.NewCidV1(cid.Raw, sum)
}

// prefix returns the protocol prefix of a swarm's DHT.
func prefix(swarm string) protocol.ID { return protocol.ID("/kwaai/" + swarm) }

// Protocol returns what the nodes of a swarm's DHT speak with each other, `/kwaai/<swarm>/kad/1.0.0`.
func Protocol(swarm string) protocol.ID { return prefix(swarm) + "/kad/1.0.0" }

// src/mm/flusher.hpp
//
// The flusher thread: writes dirty inodes in the background. Linux: fs/fs-writeback.c (bdi_writeback), one thread for now.
//
//   every 5 s: inodes dirty longer than 30 s · when woken over the background limit: until under it · asked: everything
#pragma once

#include "mm/filemap_io.hpp"

namespace weir {

class Flusher final : public WritebackControlSink {
 public:
  Flusher(PageWriteback& writeback, FilemapIo& files, VmStat& vmstat);
  void start(World& world);
  void stop();
  void mark_inode_dirty(Inode& inode);
  void wakeup_flusher_threads(int reason) override;

 private:
  PageWriteback& writeback_;
  FilemapIo& files_;
  VmStat& vmstat_;
};

}  // namespace weir

// tests/flows/flow_command_test.cpp
//
// weir flow ID --kernel A --diff B, by the command's output and exit status.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <string>

#include "places.hpp"

namespace {

using testing::HasSubstr;

struct Said {
  int status = -1;
  std::string text;
};

Said weir(const std::string& arguments, unsigned columns = 100) {
  const std::string command =
      "COLUMNS=" + std::to_string(columns) + " " + WEIR_BUILD_DIR + "/bin/weir " + arguments + " 2>&1";
  Said said;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return said;
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) said.text.append(buffer, n);
  const int status = pclose(pipe);
  said.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return said;
}

TEST(FlowDiffCommand, OneKernelBesideItselfDoesNotDiffer) {
  const Said said = weir("flow oom-any --kernel 4.14 --diff 4.14");
  EXPECT_EQ(said.status, 0) << said.text;
  EXPECT_THAT(said.text, HasSubstr("kernel 4.14"));
  EXPECT_THAT(said.text, HasSubstr("|-->out_of_memory"));
}

TEST(FlowDiffCommand, WhatOnlyOneKernelCallsIsMarked) {
  const Said said = weir("flow oom-any --kernel 2.6.20 --diff 4.14 --no-states");
  EXPECT_EQ(said.status, 1) << said.text;
  const std::string titles = said.text.substr(0, said.text.find('\n'));
  EXPECT_THAT(titles, HasSubstr("kernel 2.6.20"));
  EXPECT_THAT(titles, HasSubstr("kernel 4.14"));
  bool old_only = false, new_only = false;
  for (size_t at = 0; at < said.text.size();) {
    const size_t end = said.text.find('\n', at);
    const std::string line = said.text.substr(at, end - at);
    EXPECT_LE(line.size(), 100u) << line;
    const size_t left = line.find(" <"), right = line.find(" > ");
    if (line.find("|-->badness") != std::string::npos) old_only = left != std::string::npos;
    if (line.find("|-->oom_badness") != std::string::npos) new_only = right != std::string::npos;
    at = end + 1;
  }
  EXPECT_TRUE(old_only) << said.text;
  EXPECT_TRUE(new_only) << said.text;
}

TEST(FlowDiffCommand, WhatCannotBeComparedIsTrouble) {
  EXPECT_EQ(weir("flow oom-any --diff 9.9").status, 2);
  EXPECT_EQ(weir("flow --diff 4.14").status, 2);
  EXPECT_EQ(weir("flow no-such-flow --diff 4.14").status, 2);
  EXPECT_EQ(weir("flow oom-any --diff 4.14 --json").status, 2);
}

}  // namespace

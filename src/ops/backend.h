#pragma once
#include "quaver/backend.h"
